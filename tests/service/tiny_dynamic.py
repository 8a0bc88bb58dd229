"""The tiny model for images of any size: the same outputs, whose maps have cells that the image fills in part.

`stage1` to `stage4` are average pools of which the last window may reach beyond the image, where it has the mean of
what is there. Of where it looks there are two layers: queries are such pools of a colour, and keys are pools of those.
`reference` and `explained` compute the same in NumPy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.model import manifest as contract
from service.model.explain_record import ExplainLayerRecord, ExplainRecord
from tests.service import tiny_model
from tests.service.tiny_model import CLASSES, MEAN, POOLS, SIZE, STD, vectors, weights

NAME = "tiny-dynamic"
MIN_SIDE, MAX_SIDE = 29, 2048
RECORD = ExplainRecord(
    layers=tuple(
        ExplainLayerRecord(
            name=f"stages.{stage}.attns.0",
            stage=stage + 1,
            block=1,
            groups=2,
            key_rows=keys,
            key_columns=keys,
            query_rows=SIZE // stride,
            query_columns=SIZE // stride,
            stride=stride,
            key_window=window,
            key_stride=window,
            key_padding=0,
            position_difference=0.0,
            attention_difference=0.0,
        )
        for stage, stride, window, keys in ((2, 14, 2, 2), (3, 28, 1, 2))
    )
)


def reference(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """The outputs for uint8 (batch, height, width, 3)."""
    x = ((images.astype(np.float64) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    outputs = {"embedding": x.mean((2, 3))}
    outputs["logits"] = outputs["embedding"] @ weights()
    outputs |= {name: _pooled(x, pool) for name, pool in POOLS.items()}
    return {name: value.astype(np.float32) for name, value in outputs.items()}


def explained(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What the graph of where it looks gives for uint8 (batch, height, width, 3)."""
    unit = images.astype(np.float64).transpose(0, 3, 1, 2) / 255
    outputs = {}
    for number, layer in enumerate(RECORD.layers):
        queries = _pooled(unit, layer.stride or 0)
        window = layer.key_window or 0
        whole = queries[:, :, : queries.shape[2] // window * window, : queries.shape[3] // window * window]
        keys = _pooled(whole, window)
        keys, queries = keys.reshape(*keys.shape[:2], -1), queries.reshape(*queries.shape[:2], -1)[:, :2]
        place = keys * 2 - 1
        outputs[f"position{number}"] = np.stack([place[:, :2], place[:, 1:]], -1)
        heeded = np.exp(queries[..., None] * keys[:, :2, None])
        outputs[f"attention{number}"] = heeded / heeded.sum(-1, keepdims=True)
    return {name: value.astype(np.float32) for name, value in outputs.items()}


def _pooled(x: NDArray[np.float64], pool: int) -> NDArray[np.float64]:
    """(batch, channels, height, width) to the means of its parts, the last of which may be smaller."""
    sums = np.add.reduceat(np.add.reduceat(x, range(0, x.shape[2], pool), 2), range(0, x.shape[3], pool), 3)
    rows, columns = (np.diff([*range(0, side, pool), side]) for side in x.shape[2:])
    means: NDArray[np.float64] = sums / np.outer(rows, columns)
    return means


def _pool(source: str, target: str, window: int, *, is_partial: bool) -> onnx.NodeProto:
    sides = [window, window]
    return helper.make_node(
        "AveragePool", [source], [target], kernel_shape=sides, strides=sides, ceil_mode=int(is_partial)
    )


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[np.generic]], outputs: dict[str, tuple[object, ...]]
) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny_dynamic",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *map(_side, shape)])
                for name, shape in outputs.items()
            ],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )


def _side(side: object) -> str | int:
    return side if isinstance(side, int) else str(side)


def graph() -> onnx.ModelProto:
    """The model's own graph."""
    nodes, constants = vectors()
    nodes += [_pool("normalised", name, pool, is_partial=True) for name, pool in POOLS.items()]
    maps: dict[str, tuple[object, ...]] = {name: (3, f"{name}_rows", f"{name}_columns") for name in POOLS}
    return _model(nodes, constants, {"logits": (CLASSES,), "embedding": (3,), **maps})


def explain_graph() -> onnx.ModelProto:
    """The graph of where it looks."""
    constants: dict[str, NDArray[np.generic]] = {
        "scale": np.array(1 / 255, np.float32),
        "two": np.array(2, np.float32),
        "one": np.array(1, np.float32),
        "flat": np.array([0, 0, -1], np.int64),
        "channels": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
        "before_last": np.array([2], np.int64),
        "behind": np.array([3], np.int64),
        **{f"at{number}": np.array([number], np.int64) for number in range(4)},
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["bytes"]),
        helper.make_node("Transpose", ["bytes"], ["unit"], perm=[0, 3, 1, 2]),
    ]
    outputs: dict[str, tuple[object, ...]] = {}
    for n, layer in enumerate(RECORD.layers):
        nodes += [
            _pool("unit", f"qmap{n}", layer.stride or 0, is_partial=True),
            _pool(f"qmap{n}", f"kmap{n}", layer.key_window or 0, is_partial=False),
            helper.make_node("Reshape", [f"qmap{n}", "flat"], [f"qall{n}"]),
            helper.make_node("Reshape", [f"kmap{n}", "flat"], [f"k{n}"]),
            helper.make_node("Slice", [f"qall{n}", "at0", "at2", "channels"], [f"q{n}"]),
            helper.make_node("Slice", [f"k{n}", "at0", "at2", "channels"], [f"kown{n}"]),
            helper.make_node("Mul", [f"k{n}", "two"], [f"kdouble{n}"]),
            helper.make_node("Sub", [f"kdouble{n}", "one"], [f"place{n}"]),
            helper.make_node("Slice", [f"place{n}", "at0", "at2", "channels"], [f"y{n}"]),
            helper.make_node("Slice", [f"place{n}", "at1", "at3", "channels"], [f"x{n}"]),
            helper.make_node("Unsqueeze", [f"y{n}", "behind"], [f"ya{n}"]),
            helper.make_node("Unsqueeze", [f"x{n}", "behind"], [f"xa{n}"]),
            helper.make_node("Concat", [f"ya{n}", f"xa{n}"], [f"position{n}"], axis=-1),
            helper.make_node("Unsqueeze", [f"q{n}", "last"], [f"tall{n}"]),
            helper.make_node("Unsqueeze", [f"kown{n}", "before_last"], [f"long{n}"]),
            helper.make_node("Mul", [f"tall{n}", f"long{n}"], [f"scores{n}"]),
            helper.make_node("Softmax", [f"scores{n}"], [f"attention{n}"], axis=-1),
        ]
        outputs[f"position{n}"] = (2, f"points{n}", 2)
        outputs[f"attention{n}"] = (2, f"queries{n}", f"points{n}")
    return _model(nodes, constants, outputs)


def write(root: Path, *, name: str = NAME, explain: bool = True) -> Path:
    """Write `<root>/<name>/1` and return it."""
    directory = tiny_model.write(root, name=name, version=1, explain=explain)
    (directory / contract.MODEL_FILE).write_bytes(graph().SerializeToString())
    if explain:
        (directory / contract.EXPLAIN_FILE).write_bytes(explain_graph().SerializeToString())
    tiny_model.write_manifest(directory, name=name, version=1)
    path = directory / contract.MANIFEST_FILE
    manifest = contract.Manifest.model_validate_json(path.read_text())
    changes = {
        "variant": NAME,
        "input": contract.InputRecord(
            height=SIZE, width=SIZE, dynamic_size=True, size_multiple=1, min_side=MIN_SIDE, max_side=MAX_SIDE
        ),
        "outputs": tuple(
            record.model_copy(update={"shape": (record.shape[0], None, None)}) if record.kind == "map" else record
            for record in manifest.outputs
        ),
        "explain": RECORD if explain else None,
    }
    path.write_text(manifest.model_copy(update=changes).model_dump_json(indent=2))
    return directory
