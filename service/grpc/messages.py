"""The messages of gRPC's services, made from the compiled descriptors of `proto/`.

They are in a pool of their own: the names are the protocol's, and whoever has a client's modules in the same process
has the same names once more. The descriptors are not bound to the version of protobuf's runtime, as code that is
generated from them would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

DESCRIPTORS = Path(__file__).parent / "proto" / "descriptors.binpb"
INFERENCE_SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICE = "grpc.reflection.v1.ServerReflection"

POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
    POOL.Add(_file)


def message(name: str) -> Any:
    """Return the class of a message by its full name."""
    return GetMessageClass(POOL.FindMessageTypeByName(name))


def of_protocol(name: str) -> Any:
    """Return the class of a message of the Open Inference Protocol."""
    return message(f"inference.{name}")


ModelInferRequest = of_protocol("ModelInferRequest")
ModelInferResponse = of_protocol("ModelInferResponse")
ModelStreamInferResponse = of_protocol("ModelStreamInferResponse")
HealthCheckRequest = message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = message("grpc.health.v1.HealthCheckResponse")
ServerReflectionRequest = message("grpc.reflection.v1.ServerReflectionRequest")
ServerReflectionResponse = message("grpc.reflection.v1.ServerReflectionResponse")
Status = message("google.rpc.Status")
RetryInfo = message("google.rpc.RetryInfo")
ErrorInfo = message("google.rpc.ErrorInfo")
