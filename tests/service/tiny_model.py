"""A model directory small enough to make in a test: fixed weights, the outputs of the real ones.

The graph normalises, averages over the image (`embedding`) and multiplies by a matrix (`logits`); `stage1` to
`stage4` are average pools of the normalised image. `reference` computes the same in NumPy. Models of another size, a
multiple of SIZE, or with weights of another seed stand beside it where a test serves several.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.model import manifest as contract
from tests.service import tiny_explain

NAME, VERSION = "tiny", 3
RESIZE, SIZE, CLASSES = 64, 56, 7
SEED = 7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOLS = {"stage1": 4, "stage2": 8, "stage3": 14, "stage4": 28}
LABELS = tuple(f"class {number}" for number in range(CLASSES))


def weights(seed: int = SEED) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (3, CLASSES)).astype(np.float32)


def reference(images: NDArray[np.uint8], *, seed: int = SEED) -> dict[str, NDArray[np.float32]]:
    """The outputs for uint8 (batch, size, size, 3)."""
    x = ((images.astype(np.float64) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    batch = len(images)
    outputs = {"embedding": x.mean((2, 3))}
    outputs["logits"] = outputs["embedding"] @ weights(seed)
    for name, pool in POOLS.items():
        side = images.shape[1] // pool
        outputs[name] = x.reshape(batch, 3, side, pool, side, pool).mean((3, 5))
    return {name: value.astype(np.float32) for name, value in outputs.items()}


def vectors(*, seed: int = SEED) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """The nodes, with their constants, that give `logits` and `embedding` of images of any size, and `normalised`."""
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "mean": np.array(MEAN, np.float32).reshape(3, 1, 1),
        "std": np.array(STD, np.float32).reshape(3, 1, 1),
        "weights": weights(seed),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normalised"]),
        helper.make_node("ReduceMean", ["normalised", "axes"], ["embedding"], keepdims=0),
        helper.make_node("MatMul", ["embedding", "weights"], ["logits"]),
    ]
    return nodes, constants


def graph(*, size: int = SIZE, seed: int = SEED) -> onnx.ModelProto:
    nodes, constants = vectors(seed=seed)
    nodes += [
        helper.make_node("AveragePool", ["normalised"], [name], kernel_shape=[pool, pool], strides=[pool, pool])
        for name, pool in POOLS.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in shapes(size).items()
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
            outputs,
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )


def shapes(size: int = SIZE) -> dict[str, tuple[int, ...]]:
    return {
        "logits": (CLASSES,),
        "embedding": (3,),
        **{name: (3, size // pool, size // pool) for name, pool in POOLS.items()},
    }


def write(
    root: Path,
    *,
    name: str = NAME,
    version: int = VERSION,
    explain: bool = True,
    size: int = SIZE,
    seed: int = SEED,
    temperature: float | None = None,
) -> Path:
    """Write `<root>/<name>/<version>` and return it."""
    directory = root / name / str(version)
    directory.mkdir(parents=True)
    (directory / contract.MODEL_FILE).write_bytes(graph(size=size, seed=seed).SerializeToString())
    if explain:
        (directory / contract.EXPLAIN_FILE).write_bytes(tiny_explain.graph(size).SerializeToString())
    rows = [f"{number}\t{label}" for number, label in enumerate(LABELS)]
    (directory / contract.LABELS_FILE).write_text("\n".join(["class_id\tname", *rows]) + "\n")
    write_manifest(directory, name=name, version=version, size=size, temperature=temperature)
    return directory


def write_manifest(
    directory: Path,
    *,
    name: str = NAME,
    version: int = VERSION,
    size: int = SIZE,
    fused: contract.FusedRecord | None = None,
    temperature: float | None = None,
) -> None:
    resize = RESIZE * size // SIZE
    files = {
        path.name: contract.FileRecord(
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size_bytes=path.stat().st_size
        )
        for path in directory.iterdir()
        if path.name != contract.MANIFEST_FILE
    }
    manifest = contract.Manifest(
        name=name,
        version=version,
        variant="tiny",
        created="2026-01-01T00:00:00Z",
        precision="fp32",
        opset=20,
        sampling="none",
        num_classes=CLASSES,
        input=contract.InputRecord(height=size, width=size),
        preprocess=contract.PreprocessRecord(resize_height=resize, resize_width=resize, mean=MEAN, std=STD),
        outputs=tuple(
            contract.OutputRecord(
                name=output,
                kind="map" if output in POOLS else "vector",
                shape=shape,
                stride=POOLS.get(output),
                classes=output == "logits",
                max_abs_difference=0.0,
                reference_std=1.0,
            )
            for output, shape in shapes(size).items()
        ),
        weights_source="seed 7",
        weights_sha256="0" * 64,
        files=files,
        verification=contract.VerificationRecord(batch_sizes=(1,), provider="none", tolerance=1e-3),
        temperature=temperature,
        explain=tiny_explain.RECORD if contract.EXPLAIN_FILE in files else None,
        fused=fused,
        exporter={},
    )
    (directory / contract.MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2))
