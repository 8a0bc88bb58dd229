"""The runtime's profile as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.products import Product, limit_graph
from benchmarks.profile_nodes import NodeTime, main, node_times, shares


def node(operator: str, duration_us: int, *shapes: list[int], suffix: str = "_kernel_time") -> dict[str, Any]:
    inputs = [{"float": shape} for shape in shapes]
    arguments = {"op_name": operator, "input_type_shape": inputs}
    return {"cat": "Node", "name": f"n{suffix}", "dur": duration_us, "args": arguments}


def test_only_kernels_are_counted() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "dur": 999},
        node("MatMul", 5, [8, 49, 96], [96, 288]),
        node("MatMul", 7, suffix="_fence_before"),
        node("Add", 3, [8], []),
    ]
    assert node_times(events) == [NodeTime("MatMul", "8x49x96 96x288", 5), NodeTime("Add", "8 ()", 3)]


def test_shares_are_of_one_image_with_the_most_expensive_first() -> None:
    times = [NodeTime("Add", "8", 2000), NodeTime("MatMul", "8x8 8x8", 6000)] * 2
    rows = shares(times, lambda each: {"operator": each.operator}, runs=2, batch=4)
    assert rows == [
        {"ms_per_image": 1.5, "percent": 75.0, "nodes": 1, "operator": "MatMul"},
        {"ms_per_image": 0.5, "percent": 25.0, "nodes": 1, "operator": "Add"},
    ]


def test_command_prints_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (uint8[batch, 4, 4, 3] image) => (float[batch, 4, 4, 3] logits)
        { pixels = Cast <to = 1> (image) logits = Sin (pixels) }"""
    )
    onnx.save(model, tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), "--batch", "2", "--runs", "3"]) == 0
    printed = capsys.readouterr().out
    assert "in 2 nodes" in printed
    assert "2x4x4x3" in printed
    assert {"Cast", "Sin"} <= set(printed.split())


def test_products_graph_needs_no_image_but_is_valid() -> None:
    import onnx

    onnx.checker.check_model(limit_graph([Product(1, 2, 3, 4, weights=True)]), full_check=True)
