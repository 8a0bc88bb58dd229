"""Which form of its graph a model runs: the fused one where library and device can, else the standard one, aloud."""

from __future__ import annotations

import logging
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from operators import VERSION
from service.engine.runtime import operators
from service.engine.runtime.operators import kernel_library
from service.engine.runtime.options import Device
from service.errors import DeviceUnavailable
from service.model.directory import open_model
from service.model.loading import SessionLoader, graphs_of
from service.model.manifest import GraphForm
from service.settings import Settings
from tests.service import tiny_fused, tiny_model

IMAGES = np.random.default_rng(0).integers(0, 256, (2, tiny_model.SIZE, tiny_model.SIZE, 3), np.uint8)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a library as the package that a wheel brings."""

    def installed(library: Path, *, lack: str | None = None, version: int = VERSION) -> None:
        package = tiny_fused.package(library, missing=lambda index: lack, version=version)
        monkeypatch.setitem(sys.modules, operators.PACKAGE, package)

    return installed


def run(directory: Path, *, device: str = "cuda", **settings: object) -> tuple[SessionLoader, float]:
    """Load a model's own graph; return its loader, and how far the logits are above those of the standard graph."""
    chosen = Settings(threads=1, explain=False, **settings)  # type: ignore[arg-type]
    model = open_model(directory)
    load = SessionLoader(model, device=device, settings=chosen)
    (graph,) = graphs_of(model, chosen, buckets=(1, 2))
    logits = load(graph).run(IMAGES, ("logits",))["logits"]
    return load, float((logits - tiny_model.reference(IMAGES)["logits"]).mean())


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_fused_graph_runs_where_the_library_can_and_is_compared_with_the_standard_one(
    tmp_path: Path, library: Path, install: Callable[..., None]
) -> None:
    install(library)
    load, above = run(tiny_fused.write(tmp_path))
    assert above == pytest.approx(tiny_fused.SHIFT, rel=1e-2)
    assert load.facts.form is GraphForm.FUSED
    assert load.facts.parity is not None
    assert 0 < load.facts.parity.error < load.facts.parity.tolerance


@pytest.mark.usefixtures("cuda_on_the_cpu")
@pytest.mark.parametrize(
    ("device", "settings"),
    [("cpu", {}), ("cuda", {"fused": False})],
)
def test_standard_graph_runs_on_the_cpu_and_where_it_is_asked_for(
    tmp_path: Path, library: Path, install: Callable[..., None], device: str, settings: dict[str, bool],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    install(library)
    load, above = run(tiny_fused.write(tmp_path), device=device, **settings)
    assert above == pytest.approx(0, abs=1e-6)
    assert load.facts.form is GraphForm.STANDARD
    assert "fused" not in caplog.text


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_standard_graph_takes_the_place_of_a_fused_one_that_cannot_run_unless_that_is_to_be_refused(
    tmp_path: Path, library: Path, install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    install(library, lack="The driver is of CUDA 10, and 12 is wanted")
    directory = tiny_fused.write(tmp_path)
    with caplog.at_level(logging.WARNING):
        load, above = run(directory)
    assert above == pytest.approx(0, abs=1e-6)
    assert load.facts.form is GraphForm.STANDARD
    (warned,) = [record.getMessage() for record in caplog.records if "fused" in record.getMessage()]
    assert "cannot be run on cuda: The driver is of CUDA 10, and 12 is wanted. Its standard graph is run." in warned
    with pytest.raises(DeviceUnavailable, match=r"fused graph, which .* 12 is wanted\. Without strict_device"):
        run(directory, strict_device=True)


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_fused_graph_that_computes_something_else_is_not_served(
    tmp_path: Path, library: Path, install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    install(library)
    load, above = run(tiny_fused.write(tmp_path, tiny_fused.graph(shift=1)))
    assert above == pytest.approx(0, abs=1e-6)
    assert load.facts.form is GraphForm.STANDARD
    assert "does not compute on cuda what it computes on the CPU, in a batch of 1: logits differs" in caplog.text


def lies_about_its_output() -> onnx.ModelProto:
    """The fused graph whose logits are float16."""
    graph = tiny_fused.graph()
    for node in graph.graph.node:
        node.output[:] = ["float32" if name == "logits" else name for name in node.output]
    graph.graph.node.append(helper.make_node("Cast", ["float32"], ["logits"], to=TensorProto.FLOAT16))
    (logits,) = [output for output in graph.graph.output if output.name == "logits"]
    logits.type.tensor_type.elem_type = TensorProto.FLOAT16
    return graph


def without_an_output() -> onnx.ModelProto:
    """The fused graph without logits."""
    graph = tiny_fused.graph()
    kept = [output for output in graph.graph.output if output.name != "logits"]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    return graph


@pytest.mark.usefixtures("cuda_on_the_cpu")
@pytest.mark.parametrize(
    ("fused", "said"),
    [
        (lambda: tiny_fused.graph(operator="NoSuchOperator"), "NoSuchOperator"),
        (lies_about_its_output, r"output logits should be tensor\(float\), not tensor\(float16\)"),
        (without_an_output, r"output logits should be tensor\(float\), not absent"),
        (onnx.ModelProto, "cannot be loaded as a model"),
    ],
)
def test_fused_graph_that_is_broken_is_named_and_the_standard_one_serves(
    tmp_path: Path, library: Path, install: Callable[..., None], caplog: pytest.LogCaptureFixture,
    fused: Callable[[], onnx.ModelProto], said: str,
) -> None:  # fmt: skip
    install(library)
    directory = tiny_fused.write(tmp_path, fused())
    load, above = run(directory)
    assert above == pytest.approx(0, abs=1e-6)
    assert load.facts.form is GraphForm.STANDARD
    assert re.search(
        rf"fused graph, which cannot be run on cuda: .*{said}(?s:.*)Its standard graph is run", caplog.text
    )
    with pytest.raises(DeviceUnavailable, match=rf"(?s){said}.*Without strict_device its standard graph would run"):
        run(directory, strict_device=True)


def raising(device_index: int) -> str | None:
    raise ZeroDivisionError("deep within")


@pytest.mark.usefixtures("cuda_on_the_cpu")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"missing": raising}, "does not say what it has: ZeroDivisionError"),
        ({"missing": None}, "does not say what it has: TypeError"),
        ({"library": lambda: None}, "does not say what it has: TypeError"),
        ({"library": lambda: "/nowhere/libdat_operators.so"}, "libdat_operators.so"),
        ({"library": lambda: Path(__file__)}, "invalid ELF header|file too short"),
        ({"VERSION": None}, "has None"),
        (None, "does not say what it has: AttributeError"),
    ],
)
def test_package_that_is_broken_is_named_and_the_standard_graph_serves(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    changed: dict[str, object] | None, said: str,
) -> None:  # fmt: skip
    package = types.ModuleType(operators.PACKAGE)
    if changed is not None:
        package = tiny_fused.package(library, missing=lambda index: None, version=VERSION)
        package.__dict__.update(changed)
    monkeypatch.setitem(sys.modules, operators.PACKAGE, package)
    directory = tiny_fused.write(tmp_path)
    load, above = run(directory)
    assert above == pytest.approx(0, abs=1e-6)
    assert load.facts.form is GraphForm.STANDARD
    assert re.search(rf"fused graph, which cannot be run on cuda: .*({said}).*Its standard graph is run", caplog.text)
    with pytest.raises(DeviceUnavailable, match=rf"({said}).*Without strict_device its standard graph would run"):
        run(directory, strict_device=True)


def test_package_that_fails_while_it_is_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dat_operators.py").write_text("1 / 0\n")
    monkeypatch.delitem(sys.modules, operators.PACKAGE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceUnavailable, match=r"dat_operators with its kernels cannot be loaded: ZeroDivisionError"):
        kernel_library(Device("cuda"), version=VERSION)


def unloadable(device_index: int) -> str | None:
    raise OSError("GLIBC_9 not found")


def test_library_that_is_not_there_or_not_the_right_one_is_named(
    monkeypatch: pytest.MonkeyPatch, install: Callable[..., None]
) -> None:
    monkeypatch.setitem(sys.modules, operators.PACKAGE, None)
    with pytest.raises(DeviceUnavailable, match="The package dat_operators with its kernels cannot be loaded"):
        kernel_library(Device("cuda"), version=VERSION)
    broken = tiny_fused.package(Path("none.so"), missing=unloadable, version=VERSION)
    monkeypatch.setitem(sys.modules, operators.PACKAGE, broken)
    with pytest.raises(DeviceUnavailable, match=r"The library of dat_operators cannot be loaded: GLIBC_9 not found\."):
        kernel_library(Device("cuda"), version=VERSION)
    install(Path("libdat_operators.so"))
    assert kernel_library(Device("cuda"), version=VERSION) == Path("libdat_operators.so")
    with pytest.raises(DeviceUnavailable, match=f"of version {VERSION + 1} of the operators, .* has {VERSION}"):
        kernel_library(Device("cuda"), version=VERSION + 1)
