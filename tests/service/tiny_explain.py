"""Where the tiny model looks: a graph of a few operations with two layers, and the same in NumPy.

The first layer has two groups of 2 x 2 points and 4 x 4 queries, the second one group of 1 x 2 points and 2 x 1
queries. A point lies where the mean colour of its part of the image says, and is heeded as that and the query's
part of the image are bright.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.model.explain_record import ExplainLayerRecord, ExplainRecord

_SHARPNESS = 8.0

RECORD = ExplainRecord(
    layers=tuple(
        ExplainLayerRecord(
            name=f"stages.{stage}.attns.{stage - 2}",
            stage=stage + 1,
            block=stage - 1,
            groups=groups,
            key_rows=keys[0],
            key_columns=keys[1],
            query_rows=queries[0],
            query_columns=queries[1],
            position_difference=0.0,
            attention_difference=0.0,
        )
        for stage, groups, keys, queries in ((2, 2, (2, 2), (4, 4)), (3, 1, (1, 2), (2, 1)))
    )
)


def shapes() -> dict[str, tuple[int, ...]]:
    return dict(RECORD.outputs)


def reference(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """The outputs for uint8 (batch, size, size, 3)."""
    unit = images.astype(np.float64).transpose(0, 3, 1, 2) / 255
    outputs = {}
    for number, layer in enumerate(RECORD.layers):
        keys = _pooled(unit, layer.key_rows, layer.key_columns)[:, : layer.groups + 1]
        queries = _pooled(unit, layer.query_rows, layer.query_columns)[:, : layer.groups]
        place = keys * 2 - 1
        outputs[f"position{number}"] = np.stack([place[:, :-1], place[:, 1:]], -1)
        scores = _SHARPNESS * queries[..., None] * keys[:, :-1, None]
        heeded = np.exp(scores - scores.max(-1, keepdims=True))
        outputs[f"attention{number}"] = heeded / heeded.sum(-1, keepdims=True)
    return {name: value.astype(np.float32) for name, value in outputs.items()}


def _pooled(unit: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """(batch, 3, size, size) to the means of its parts, (batch, 3, rows * columns)."""
    batch, channels, height, width = unit.shape
    parts = unit.reshape(batch, channels, rows, height // rows, columns, width // columns)
    pooled: NDArray[np.float64] = parts.mean((3, 5)).reshape(batch, channels, rows * columns)
    return pooled


def graph(size: int) -> onnx.ModelProto:
    """The graph for images of `size` x `size` pixels."""
    constants: dict[str, NDArray[np.generic]] = {
        "scale": np.array(1 / 255, np.float32),
        "two": np.array(2, np.float32),
        "one": np.array(1, np.float32),
        "sharpness": np.array(_SHARPNESS, np.float32),
        "zero_at": np.array([0], np.int64),
        "one_at": np.array([1], np.int64),
        "channels": np.array([1], np.int64),
        "flat": np.array([0, 0, -1], np.int64),
        "last": np.array([-1], np.int64),
        "before_last": np.array([2], np.int64),
        "behind_first": np.array([3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["bytes"]),
        helper.make_node("Transpose", ["bytes"], ["unit"], perm=[0, 3, 1, 2]),
    ]
    for number, layer in enumerate(RECORD.layers):
        groups = f"groups{number}"
        constants[groups] = np.array([layer.groups], np.int64)
        constants[f"{groups}_more"] = np.array([layer.groups + 1], np.int64)
        for kind, rows, columns in (
            ("keys", layer.key_rows, layer.key_columns),
            ("queries", layer.query_rows, layer.query_columns),
        ):
            window = [size // rows, size // columns]
            pooled = f"{kind}{number}"
            nodes += [
                helper.make_node("AveragePool", ["unit"], [f"{pooled}_map"], kernel_shape=window, strides=window),
                helper.make_node("Reshape", [f"{pooled}_map", "flat"], [pooled]),
            ]
        keys, queries = f"keys{number}", f"queries{number}"
        nodes += [
            helper.make_node("Mul", [keys, "two"], [f"{keys}_double"]),
            helper.make_node("Sub", [f"{keys}_double", "one"], [f"{keys}_place"]),
            helper.make_node("Slice", [f"{keys}_place", "zero_at", groups, "channels"], [f"y{number}"]),
            helper.make_node("Slice", [f"{keys}_place", "one_at", f"{groups}_more", "channels"], [f"x{number}"]),
            helper.make_node("Unsqueeze", [f"y{number}", "behind_first"], [f"y{number}_apart"]),
            helper.make_node("Unsqueeze", [f"x{number}", "behind_first"], [f"x{number}_apart"]),
            helper.make_node("Concat", [f"y{number}_apart", f"x{number}_apart"], [f"position{number}"], axis=-1),
            helper.make_node("Slice", [queries, "zero_at", groups, "channels"], [f"{queries}_own"]),
            helper.make_node("Slice", [keys, "zero_at", groups, "channels"], [f"{keys}_own"]),
            helper.make_node("Unsqueeze", [f"{queries}_own", "last"], [f"{queries}_tall"]),
            helper.make_node("Unsqueeze", [f"{keys}_own", "before_last"], [f"{keys}_wide"]),
            helper.make_node("Mul", [f"{queries}_tall", f"{keys}_wide"], [f"product{number}"]),
            helper.make_node("Mul", [f"product{number}", "sharpness"], [f"scores{number}"]),
            helper.make_node("Softmax", [f"scores{number}"], [f"attention{number}"], axis=-1),
        ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny_explain",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
                for name, shape in shapes().items()
            ],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
