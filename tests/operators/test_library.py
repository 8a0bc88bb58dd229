"""The library in the runtime: shapes that are inferred, what is refused and how, and how it is built."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.build import BuildError, build
from tests.operators.conftest import Arrays, Run, half, node_graph

GENERATOR = np.random.default_rng(0)
WINDOW: Arrays = {
    "qkv": half(GENERATOR, 1, 7, 7, 24),
    "bias": half(GENERATOR, 24),
    "position_bias": half(GENERATOR, 2, 49, 49),
}
NEIGHBORHOOD: Arrays = {
    "qkv": half(GENERATOR, 1, 7, 7, 24),
    "bias": half(GENERATOR, 24),
    "position_bias": half(GENERATOR, 2, 9, 9),
}
DEPTHWISE: Arrays = {
    "x": half(GENERATOR, 2, 9, 6, 8),
    "added": half(GENERATOR, 8),
    "weight": half(GENERATOR, 3, 3, 4),
    "bias": half(GENERATOR, 4),
}
EMBEDDING: Arrays = {
    "image": np.zeros((2, 9, 8, 3), np.uint8),
    "beyond": half(GENERATOR, 3),
    "weight": half(GENERATOR, 4, 4, 3, 8),
    "bias": half(GENERATOR, 8),
    "gain": half(GENERATOR, 8),
    "shift": half(GENERATOR, 8),
}
PERCEPTION: Arrays = {
    "residual": half(GENERATOR, 1, 3, 4, 8),
    "x": half(GENERATOR, 1, 3, 4, 8),
    "added": half(GENERATOR, 8),
    "weight": half(GENERATOR, 3, 3, 8),
    "bias": half(GENERATOR, 8),
    "gain": half(GENERATOR, 8),
    "shift": half(GENERATOR, 8),
}
POSITIONS: Arrays = {
    "query": half(GENERATOR, 2, 6, 9, 8),
    "weight": half(GENERATOR, 3, 3, 4),
    "bias": half(GENERATOR, 4),
    "gain": half(GENERATOR, 4),
    "shift": half(GENERATOR, 4),
    "projection": half(GENERATOR, 2, 4),
    "scale": np.ones(2, np.float32),
}
NORM: Arrays = {
    "residual": half(GENERATOR, 2, 8),
    "x": half(GENERATOR, 2, 8),
    "bias": half(GENERATOR, 8),
    "gain": half(GENERATOR, 8),
    "shift": half(GENERATOR, 8),
}
SAMPLING: Arrays = {"x": half(GENERATOR, 2, 4, 4, 6), "positions": np.zeros((2, 3, 5, 2), np.float32)}
ATTENTION: Arrays = {
    "query": half(GENERATOR, 1, 3, 3, 8),
    "key": half(GENERATOR, 1, 4, 8),
    "value": half(GENERATOR, 1, 4, 8),
    "positions": np.zeros((1, 2, 4, 2), np.float32),
    "table": half(GENERATOR, 4, 5, 5),
}


def test_shapes_are_inferred_for_any_batch(session_of: Callable[[bytes], Any]) -> None:
    session = session_of(node_graph("WindowAttention", WINDOW, heads=2, window=7, shift=0))
    assert session.get_outputs()[0].shape == [1, 7, 7, 8]
    session = session_of(
        node_graph("DepthwiseConvolution", DEPTHWISE, batch="batch", stride=2, padding=1, skip=0, gelu=0)
    )
    assert session.get_outputs()[0].shape == ["batch", 5, 3, 8]
    embedding = node_graph("PatchEmbedding", EMBEDDING, stride=4, padding=0, gelu=0, epsilon=1e-5)
    assert session_of(embedding).get_outputs()[0].shape == [2, 2, 2, 8]
    attributes = {"stride": 2, "padding": 1, "generation": 2, "bound": 0}
    positions = node_graph("SamplingPositions", POSITIONS, batch="batch", gives=1, epsilon=1e-5, **attributes)
    assert session_of(positions).get_outputs()[0].shape == ["batch", 2, 15, 2]
    session = session_of(node_graph("SampleFeatures", SAMPLING, batch="batch"))
    assert session.get_outputs()[0].shape == ["batch", 5, 6]
    for images in (1, 3):
        inputs = {name: np.repeat(value[:1], images, 0) for name, value in SAMPLING.items()}
        assert session.run(None, inputs)[0].shape == (images, 5, 6)


@pytest.mark.parametrize(
    ("operator", "inputs", "changed", "attributes", "said"),
    [
        (
            "WindowAttention",
            WINDOW,
            {"qkv": half(GENERATOR, 49, 24)},
            {},
            "input 0 has 2 dimensions, and should have 4",
        ),
        ("WindowAttention", WINDOW, {"bias": half(GENERATOR, 23)}, {}, "values of the bias: 23, and should be 24"),
        ("WindowAttention", WINDOW, {}, {"heads": 5}, "5 heads do not divide 8 channels"),
        ("WindowAttention", WINDOW, {}, {"heads": 0}, "0 heads do not divide 8 channels"),
        ("WindowAttention", WINDOW, {}, {"window": 6}, "queries of the position bias: 49, and should be 36"),
        ("WindowAttention", WINDOW, {}, {"window": -1}, "a window of -1"),
        ("WindowAttention", WINDOW, {}, {"shift": 7}, "a shift of 7 in a window of 7"),
        ("NeighborhoodAttention", NEIGHBORHOOD, {}, {"kernel": 4}, "a kernel of 4, and it is odd"),
        ("NeighborhoodAttention", NEIGHBORHOOD, {}, {"kernel": 7}, "rows of the position bias: 9, and should be 13"),
        ("NeighborhoodAttention", NEIGHBORHOOD, {}, {"heads": 3}, "3 heads do not divide 8 channels"),
        ("DepthwiseConvolution", DEPTHWISE, {}, {"stride": 0}, "a stride of 0"),
        ("DepthwiseConvolution", DEPTHWISE, {}, {"padding": 3}, "a padding of 3 for a kernel of 3"),
        ("DepthwiseConvolution", DEPTHWISE, {}, {"gelu": 2}, "gelu is 2, and should be 0 or 1"),
        ("DepthwiseConvolution", DEPTHWISE, {}, {"stride": 2}, "a skip around a convolution that changes the size"),
        ("DepthwiseConvolution", DEPTHWISE, {"bias": half(GENERATOR, 8)}, {}, "values of the bias: 8, and should be 4"),
        (
            "DepthwiseConvolution",
            DEPTHWISE,
            {"weight": half(GENERATOR, 3, 3, 3)},
            {},
            "3 channels of weights do not divide 8 channels",
        ),
        (
            "DepthwiseConvolution",
            DEPTHWISE,
            {"weight": half(GENERATOR, 7, 7, 4)},
            {"padding": 0, "skip": 0},
            "a kernel of 7 on a side of 6",
        ),
        ("PatchEmbedding", EMBEDDING, {}, {"stride": -4}, "a stride of -4"),
        ("PatchEmbedding", EMBEDDING, {}, {"gelu": -1}, "gelu is -1, and should be 0 or 1"),
        (
            "PatchEmbedding",
            EMBEDDING,
            {"beyond": half(GENERATOR, 4)},
            {},
            "colours beyond the image: 4, and should be 3",
        ),
        ("PatchEmbedding", EMBEDDING, {"shift": half(GENERATOR, 9)}, {}, "values of the shift: 9, and should be 8"),
        ("PerceptionNorm", PERCEPTION, {"x": half(GENERATOR, 1, 4, 3, 8)}, {}, "residual and x have different shapes"),
        ("PerceptionNorm", PERCEPTION, {"weight": half(GENERATOR, 2, 2, 8)}, {}, "a kernel of 2, and it is odd"),
        ("PerceptionNorm", PERCEPTION, {"weight": half(GENERATOR, 3, 3, 4)}, {}, "channels of the weights: 4"),
        ("SamplingPositions", POSITIONS, {}, {"bound": 3}, "bound 3, and there are 0, 1 and 2"),
        ("SamplingPositions", POSITIONS, {}, {"generation": 0}, "generation 0, and there are 1 and 2"),
        ("SamplingPositions", POSITIONS, {}, {"stride": 6}, "a side of 6 cells has fewer than 2 keys"),
        ("SamplingPositions", POSITIONS, {"projection": half(GENERATOR, 3, 4)}, {}, "rows of the projection: 3"),
        ("SamplingPositions", POSITIONS, {}, {"padding": 2**62}, f"a padding of {2**62} for a kernel of 3"),
        ("PatchEmbedding", EMBEDDING, {}, {"stride": 2**63 - 1}, f"a stride of {2**63 - 1}"),
        ("DepthwiseConvolution", DEPTHWISE, {}, {"padding": -(2**63)}, f"a padding of {-(2**63)} for a kernel of 3"),
        (
            "BiasGelu",
            {"x": np.zeros((), np.float16)},
            {"bias": half(GENERATOR, 4)},
            {},
            "0 dimensions, and should have 1 to 6",
        ),
        ("ResidualLayerNorm", NORM, {"x": half(GENERATOR, 3, 8)}, {}, "residual and x have different shapes"),
        ("ResidualLayerNorm", NORM, {"gain": half(GENERATOR, 9)}, {}, "values of the gain: 9, and should be 8"),
        ("SampleFeatures", SAMPLING, {"x": half(GENERATOR, 2, 4, 4, 7)}, {}, "3 groups do not divide 7 channels"),
        ("SampleFeatures", SAMPLING, {"x": half(GENERATOR, 3, 4, 4, 6)}, {}, "images in the batch: 2, and should be 3"),
        (
            "DeformableAttention",
            ATTENTION,
            {"value": half(GENERATOR, 1, 5, 8)},
            {},
            "keys or values: 5, and should be 4",
        ),
        ("DeformableAttention", ATTENTION, {"table": half(GENERATOR, 3, 5, 5)}, {}, "heads of the table: 3"),
        ("DeformableAttention", ATTENTION, {}, {"generation": 3}, "generation 3, and there are 1 and 2"),
        ("BiasGelu", {"x": half(GENERATOR, 2, 3)}, {"bias": half(GENERATOR, 4)}, {}, "values of the bias: 4"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(
    run: Run, operator: str, inputs: Arrays, changed: Arrays, attributes: dict[str, int], said: str
) -> None:
    usual: dict[str, dict[str, Any]] = {
        "WindowAttention": {"heads": 2, "window": 7, "shift": 0},
        "NeighborhoodAttention": {"heads": 2, "kernel": 5},
        "DepthwiseConvolution": {"stride": 1, "padding": 1, "skip": 1, "gelu": 0},
        "PatchEmbedding": {"stride": 4, "padding": 0, "gelu": 0, "epsilon": 1e-5},
        "PerceptionNorm": {"epsilon": 1e-5},
        "SamplingPositions": {"stride": 2, "padding": 1, "generation": 2, "bound": 0, "epsilon": 1e-5, "gives": 1},
        "ResidualLayerNorm": {"epsilon": 1e-5},
        "DeformableAttention": {"heads": 4, "generation": 1},
    }
    outputs = 2 if operator in ("PerceptionNorm", "ResidualLayerNorm") else 1
    with pytest.raises(Exception, match=rf"dat\.{operator}: .*{said}"):
        run(operator, inputs | changed, outputs, **(usual.get(operator, {}) | attributes))


@pytest.mark.parametrize(
    ("inputs", "attributes", "said"),
    [
        (WINDOW, {"heads": 2, "window": 7}, "shift"),
        (WINDOW | {"qkv": np.zeros((1, 7, 7, 24), np.float32)}, {"heads": 2, "window": 7, "shift": 0}, "(?i)type"),
    ],
)
def test_nodes_that_are_wrong_are_refused_when_a_graph_is_opened(
    session_of: Callable[[bytes], Any], inputs: Arrays, attributes: dict[str, int], said: str
) -> None:
    with pytest.raises(Exception, match=said):
        session_of(node_graph("WindowAttention", inputs, **attributes))


def test_an_empty_batch_gives_an_empty_answer(run: Run) -> None:
    inputs = WINDOW | {"qkv": half(GENERATOR, 0, 7, 7, 24)}
    assert run("WindowAttention", inputs, heads=2, window=7, shift=3)[0].shape == (0, 7, 7, 8)


@pytest.mark.parametrize(
    ("operator", "shape", "given", "attributes"),
    [
        ("NeighborhoodAttention", (1, 2**58, 0, 24), (1, 2**58, 0, 8), {"heads": 2, "kernel": 5}),
        ("NeighborhoodAttention", (1, 2**30, 0, 24), (1, 2**30, 0, 8), {"heads": 2, "kernel": 5}),
        ("WindowAttention", (1, 0, 2**30, 24), (1, 0, 2**30, 8), {"heads": 2, "window": 7, "shift": 3}),
    ],
)
def test_maps_without_a_cell_give_nothing_however_large_a_side_is(
    session_of: Callable[[bytes], Any], operator: str, shape: tuple[int, ...], given: tuple[int, ...],
    attributes: dict[str, int],
) -> None:  # fmt: skip
    whole = NEIGHBORHOOD if operator == "NeighborhoodAttention" else WINDOW
    session = session_of(node_graph(operator, whole, made="qkv", **attributes))
    rest = {name: value for name, value in whole.items() if name != "qkv"}
    assert session.run(None, rest | {"shape": np.array(shape)})[0].shape == given


@pytest.mark.parametrize("shape", [(1, 2**62 - 2, 0, 8), (1, 2**30 + 1, 0, 8)])
def test_a_side_that_no_tensor_has_is_refused(session_of: Callable[[bytes], Any], shape: tuple[int, ...]) -> None:
    attributes = {"stride": 1, "padding": 2, "generation": 1, "bound": 0, "epsilon": 1e-5}
    session = session_of(node_graph("SamplingPositions", POSITIONS, made="query", gives=1, **attributes))
    rest = {name: value for name, value in POSITIONS.items() if name != "query"}
    with pytest.raises(Exception, match=rf"dat\.SamplingPositions: a side of {shape[1]} cells"):
        session.run(None, rest | {"shape": np.array(shape)})


def test_sessions_of_many_threads_share_the_library(session_of: Callable[[bytes], Any]) -> None:
    graph = node_graph("WindowAttention", WINDOW, heads=2, window=7, shift=3)
    with ThreadPoolExecutor(4) as threads:
        given = list(threads.map(lambda _: session_of(graph).run(None, WINDOW)[0], range(16)))
    assert all(np.array_equal(each, given[0]) for each in given)


def test_it_is_built_by_its_command(library: Path, tmp_path: Path) -> None:
    path = tmp_path / "made" / "operators.so"
    made = subprocess.run([sys.executable, "-m", "operators", str(path)], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == str(path)
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert list(path.parent.iterdir()) == [path]


def test_a_compiler_that_is_missing_or_fails_is_named(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BuildError, match="there is no C compiler 'no-such-compiler'"):
        build(tmp_path / "operators.so")
    monkeypatch.setenv("CC", "cc -fno-such-option-at-all")
    with pytest.raises(BuildError, match="no-such-option-at-all"):
        build(tmp_path / "operators.so")
    assert list(tmp_path.iterdir()) == []
