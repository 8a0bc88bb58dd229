"""The methods of gRPC that run a model, as log and metrics name them, known where gRPC itself is not."""

from __future__ import annotations

GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
GRPC_INFERENCE_ROUTES = frozenset((GRPC_INFER, GRPC_STREAM_INFER))
