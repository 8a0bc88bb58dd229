"""What the export tests share: small networks with their graphs, each traced once a run however many processes run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import onnx
import pytest
from filelock import FileLock

from export.explain import ExplainModel, output_names
from export.fused import fused_graph
from export.graph import Normalisation, export_graph
from export.operator_library import operator_library
from export.sampling import select_strategy
from models.dat import DAT
from operators.build import BuildError, compiler
from tests.export.networks import NETWORKS, SIZE
from tests.golden_files import synthetic_model

NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Exported(NamedTuple):
    """A network with its graph, and that graph's file, which is for reading."""

    model: DAT
    graph: onnx.ModelProto
    path: Path


class ExportNetwork(Protocol):
    """Gives one of `NETWORKS` with synthetic weights, exported with a sampling strategy for an opset."""

    def __call__(self, network: str, sampling: str = "separable", opset: int = 18) -> Exported: ...


class FuseNetwork(Protocol):
    """Gives one of `NETWORKS` with synthetic weights, and its fused graph."""

    def __call__(self, network: str) -> Exported: ...


class ExplainNetwork(Protocol):
    """Gives one of `NETWORKS` with synthetic weights, and its graph of where it looks."""

    def __call__(self, network: str) -> Exported: ...


@pytest.fixture(scope="session")
def exported_network(shared: Path) -> ExportNetwork:
    """Export networks, each once in each form."""

    def export(network: str, sampling: str = "separable", opset: int = 18) -> Exported:
        model = synthetic_model(NETWORKS[network](), SIZE)
        path = shared / f"{network}-{sampling}-{opset}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                strategy = select_strategy(sampling, opset)
                graph = export_graph(model, NORMALISATION, strategy=strategy, opset=opset, example_size=SIZE)
                onnx.save(graph, path)
        return Exported(model, onnx.load(path), path)

    return export


@pytest.fixture(scope="session")
def explained_network(shared: Path) -> ExplainNetwork:
    """Export the graphs of where networks look, each once."""

    def export(network: str) -> Exported:
        model = synthetic_model(NETWORKS[network](), SIZE)
        path = shared / f"{network}-explain.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                graph = export_graph(
                    model, NORMALISATION, strategy=select_strategy("gridsample", 18), opset=18, example_size=SIZE,
                    output_names=output_names(model), front=ExplainModel,
                )  # fmt: skip
                onnx.save(graph, path)
        return Exported(model, onnx.load(path), path)

    return export


@pytest.fixture(scope="session")
def fused_network(shared: Path) -> FuseNetwork:
    """Export the fused graphs of networks, each once."""

    def export(network: str) -> Exported:
        model = synthetic_model(NETWORKS[network](), SIZE)
        path = shared / f"{network}-fused.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                strategy = select_strategy("separable", 18)
                onnx.save(fused_graph(model, NORMALISATION, strategy=strategy, opset=18), path)
        return Exported(model, onnx.load(path), path)

    return export


@pytest.fixture(scope="session")
def library() -> Iterator[Path]:
    """The library of the operators; skipped where there is no compiler."""
    try:
        compiler()
    except BuildError as missing:
        pytest.skip(str(missing))
    with operator_library() as path:
        yield path


@pytest.fixture(scope="session")
def first_exported(exported_network: ExportNetwork) -> Exported:
    """The small first-generation network with its graph."""
    return exported_network("first_generation", "gridsample")
