"""The least models that the sessions' tests need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from service.engine.board import Board
from service.engine.core import EngineCore
from service.engine.graphs import Graph
from service.engine.slots import SlotPool
from service.engine.types import Outputs, Pixels, Session
from tests.service.engine.fakes import MODEL

SHAPE = (2, 4, 3)
PIXELS = 24
OUTPUTS = ("logits", "embedding")


def write_model(
    path: Path,
    *,
    input_name: str = "image",
    input_type: int = TensorProto.UINT8,
    dims: tuple[str | int, ...] = ("batch", *SHAPE),
    output_type: int = TensorProto.FLOAT,
    flat: str = "embedding",
    more: Sequence[NodeProto] = (),
    constants: Sequence[TensorProto] = (),
) -> Path:
    """A model whose `embedding` is the image flattened, and whose `logits` are the embedding's sum.

    `more` nodes may make the embedding of the flattened image, then called `flat`.
    """
    nodes = [
        helper.make_node("Cast", [input_name], ["pixels"], to=output_type),
        helper.make_node("Flatten", ["pixels"], [flat], axis=1),
        *more,
        helper.make_node("ReduceSum", ["embedding", "axes"], ["logits"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, input_type, dims)],
        [helper.make_tensor_value_info(name, output_type, ("batch", None)) for name in OUTPUTS],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1]), *constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def write_model_through(path: Path, operator: str) -> Path:
    """The same with an elementwise operator between the image, scaled down to 0...1, and the embedding."""
    return write_model(
        path,
        flat="flat",
        more=[
            helper.make_node("Mul", ["flat", "scale"], ["scaled"], name="scaling"),
            helper.make_node(operator, ["scaled"], ["embedding"], name="middle"),
        ],
        constants=[helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255])],
    )


def write_insatiable_model(path: Path) -> Path:
    """The same over 2^44 copies of each image, more than can be addressed, though not more than can be counted."""
    return write_model(
        path,
        flat="flat",
        more=[
            helper.make_node("Expand", ["flat", "copies"], ["copied"]),
            helper.make_node("ReduceMax", ["copied", "first"], ["embedding"], keepdims=0),
        ],
        constants=[
            helper.make_tensor("copies", TensorProto.INT64, [3], [2**44, 1, PIXELS]),
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
        ],
    )


def images(count: int, seed: int = 0) -> Pixels:
    """Random images."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def expected(batch: Pixels) -> Outputs:
    """What the model of `write_model` gives."""
    embedding: NDArray[np.float32] = batch.reshape(len(batch), -1).astype(np.float32)
    return {"embedding": embedding, "logits": embedding.sum(1, keepdims=True)}


def assert_right(results: Outputs, batch: Pixels) -> None:
    """Assert that these are the outputs of these images, whichever were asked for."""
    for name, values in results.items():
        np.testing.assert_array_equal(values, expected(batch)[name], err_msg=name)


def core_of(session: Session, pool: SlotPool, *buckets: int) -> EngineCore:
    """A core that runs the model of `write_model`, and whose clock moves by a second whenever it is looked at."""
    graph = Graph(MODEL, {"logits": (1,), "embedding": (PIXELS,)}, buckets, timed=("logits",))
    row = Board(workers=1, engines=1).engines[0]
    return EngineCore([graph], {MODEL: session}, pool, row, input_shape=SHAPE, clock=iter(range(1000)).__next__)
