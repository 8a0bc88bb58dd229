"""A model that computes next to nothing, to see what everything else costs.

Same input as the real ones at 224 (uint8, batch x 224 x 224 x 3) and 1,000 logits, made of the first pixel alone. With
`products` it computes as many products of the logits with a 1,000 x 1,000 matrix: a model as slow as one likes.
"""

from __future__ import annotations

import hashlib
import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.model import manifest as contract
from service.model.directory import sha256_of

NAME = "dat_null"
VERSION = 1
SIZE, RESIZE, CLASSES = 224, 256, 1000
_OPSET = 18


def graph(*, products: int = 0) -> onnx.ModelProto:
    """Return the graph: logits = first pixel @ weights, and then as many products with a matrix."""
    constants: dict[str, NDArray[Any]] = {
        "starts": np.array([0, 0], np.int64),
        "ends": np.array([1, 1], np.int64),
        "axes": np.array([1, 2], np.int64),
        "weights": np.random.default_rng(0).normal(0, 1e-2, (3, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["wide", "axes"], ["pixel"]),
        helper.make_node("MatMul", ["pixel", "weights"], ["product0" if products else "logits"]),
    ]
    if products:
        constants["matrix"] = np.random.default_rng(1).normal(0, CLASSES**-0.5, (CLASSES, CLASSES)).astype(np.float32)
        names = [*(f"product{number}" for number in range(products)), "logits"]
        nodes += [helper.make_node("MatMul", [taken, "matrix"], [made]) for taken, made in itertools.pairwise(names)]
    return helper.make_model(
        helper.make_graph(
            nodes,
            NAME,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=9,
    )


def write(root: Path, *, name: str = NAME, version: int = VERSION, products: int = 0) -> Path:
    """Write `<root>/<name>/<version>`, a model directory that the service takes, and return it."""
    directory = root / name / str(version)
    directory.mkdir(parents=True)
    (directory / contract.MODEL_FILE).write_bytes(graph(products=products).SerializeToString())
    rows = [f"{number}\tclass {number}" for number in range(CLASSES)]
    (directory / contract.LABELS_FILE).write_text("\n".join(["class_id\tname", *rows]) + "\n")
    files = {
        path.name: contract.FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)
        for path in (directory / contract.MODEL_FILE, directory / contract.LABELS_FILE)
    }
    manifest = contract.Manifest(
        name=name,
        version=version,
        variant=NAME,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        precision="fp32",
        opset=_OPSET,
        sampling="none",
        num_classes=CLASSES,
        input=contract.InputRecord(height=SIZE, width=SIZE),
        preprocess=contract.PreprocessRecord(
            resize_height=RESIZE, resize_width=RESIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        outputs=(
            contract.OutputRecord(
                name="logits", kind="vector", shape=(CLASSES,), classes=True, max_abs_difference=0.0, reference_std=1.0
            ),
        ),
        weights_source="none",
        weights_sha256=hashlib.sha256(b"").hexdigest(),
        files=files,
        verification=contract.VerificationRecord(batch_sizes=(1,), provider="none", tolerance=1e-4),
        exporter={"onnx": onnx.__version__},
    )
    (directory / contract.MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2))
    return directory
