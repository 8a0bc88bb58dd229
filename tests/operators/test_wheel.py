"""The wheel, built by its command with real machine code, and installed where there is neither Triton nor torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

from operators import VERSION
from operators.embed import EmbedError, write_sources
from tests.operators.conftest import node_graph

ROOT = Path(__file__).parents[2]
USE = """
import json, sys
import numpy as np, onnxruntime as ort
import dat_operators
options = ort.SessionOptions()
options.register_custom_ops_library(str(dat_operators.library()))
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given = session.run(None, {"x": np.array([[1, -1]], np.float16), "bias": np.array([0, 1], np.float16)})[0]
print(json.dumps({
    "given": given.tolist(), "missing": dat_operators.missing(0), "folder": str(dat_operators.library().parent),
    "version": dat_operators.VERSION,
    "imported": [name for name in ("torch", "triton", "operators") if name in sys.modules],
}))
"""


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel of the demo model, for two targets."""
    folder = tmp_path_factory.mktemp("compiled")
    options = ["dat_demo", "--kernel", "bias_gelu", "--target", "89", "--target", "90", "--output", folder]
    told = run(sys.executable, "-m", "kernels", *options, TRITON_CACHE_DIR=str(folder / "cache"))
    assert told.returncode == 0, told.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(library: Path, compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    told = run(sys.executable, "-m", "operators.wheel", "--output", folder, "--compiled", compiled)
    assert told.returncode == 0, told.stderr
    (made,) = folder.iterdir()
    assert told.stdout == f"{made}\n"
    return made


def test_it_is_a_wheel_for_this_kind_of_machine_and_any_python(wheel: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    platform = f"linux_{os.uname().machine}"
    assert wheel.name == f"dat_operators-{version}-py3-none-{platform}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        described = Parser().parsestr(archive.read(f"dat_operators-{version}.dist-info/WHEEL").decode())
        assert "Requires-Dist" not in archive.read(f"dat_operators-{version}.dist-info/METADATA").decode()
    assert {f"dat_operators/{name}" for name in ("__init__.py", "py.typed", "libdat_operators.so")} <= names
    assert f"dat_operators-{version}.dist-info/licenses/LICENSE" in names
    assert (described["Tag"], described["Root-Is-Purelib"]) == (f"py3-none-{platform}", "false")


def test_its_library_holds_the_machine_code_and_the_ptx_that_is_for_later_devices(wheel: Path, compiled: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read("dat_operators/libdat_operators.so")
    for cubin in compiled.glob("*.cubin"):
        assert cubin.read_bytes() in library
    for ptx in compiled.glob("*.ptx"):
        assert ((ptx.read_bytes() + b"\0") in library) == ptx.name.endswith("sm_89.ptx")


def test_installed_it_is_loaded_by_the_runtime(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    installed = run(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target, wheel)
    assert installed.returncode == 0, installed.stderr
    graph = tmp_path / "one.onnx"
    graph.write_bytes(node_graph("BiasGelu", {"x": np.zeros((1, 2), np.float16), "bias": np.zeros(2, np.float16)}))
    told = run(sys.executable, "-c", USE, graph, PYTHONPATH=str(target))
    assert told.returncode == 0, told.stderr
    seen = json.loads(told.stdout)
    assert seen["folder"] == str(target / "dat_operators")
    assert (seen["version"], seen["imported"]) == (VERSION, [])
    np.testing.assert_allclose(seen["given"], [[0.8413, 0]], atol=1e-3)
    if seen["missing"] is None:
        pytest.skip("this machine has a GPU")
    assert "driver" in seen["missing"] or "device" in seen["missing"] or "cuInit" in seen["missing"]


def test_what_cannot_be_built_in_is_said(tmp_path: Path) -> None:
    with pytest.raises(EmbedError, match="holds no compiled kernels"):
        write_sources(tmp_path / "nothing", tmp_path)
    told = run(sys.executable, "-m", "operators.wheel", "--output", tmp_path / "dist", "--kernels", "dat_huge")
    assert told.returncode == 1
    assert "operators: the kernels could not be compiled" in told.stderr
    assert "unknown variants: dat_huge" in told.stderr
    assert not (tmp_path / "dist").exists()
