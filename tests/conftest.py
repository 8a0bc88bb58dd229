"""Models that several test modules need, exported once a run however many processes run it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from filelock import FileLock

from operators.build import BuildError, build, compiler
from tests.docs.pages import blocks_run_by
from tests.docs.running import lay_out, run_block

# Triton decides when it is imported whether kernels are interpreted, and torch may import it in any test of a process.
os.environ["TRITON_INTERPRET"] = "1"

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would the commands that they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

EXPLAINED = ("dat_tiny", "gridsample")
"""The export of golden weights that has explain.onnx too, which takes as long as the rest of it."""


class ExportOnce(Protocol):
    """Gives the repository that holds a variant; a sampling strategy is for any but the demo."""

    def __call__(self, name: str, sampling: str = "gridsample") -> Path: ...


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the operators with its code for the CPU alone; skipped where there is no compiler."""
    try:
        compiler()
    except BuildError as missing:
        pytest.skip(str(missing))
    return build(tmp_path_factory.mktemp("operators") / "libdat_operators.so")


@pytest.fixture(scope="session", autouse=True)
def _torch_without_trace() -> Iterator[None]:
    """Keep pytest's log capture from making torch.export write its trace, which takes a third of an export's time."""
    trace = logging.getLogger("torch.__trace")
    trace.disabled = True
    yield
    trace.disabled = False


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of the run have in common."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def exported(shared: Path) -> ExportOnce:
    """Export variants from weight files, each once.

    The demo is exported by the command of docs/export.md; other variants from the golden weights of seed 1, which are
    written as the published files are.
    """

    def export(name: str, sampling: str = "gridsample") -> Path:
        folder = shared / (name if name == "dat_demo" else f"{name}-{sampling}")
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                folder.mkdir()
                if name == "dat_demo":
                    _export_demo(folder)
                else:
                    _export_golden(name, sampling, folder)
        return folder / "my-models" if name == "dat_demo" else folder

    return export


@pytest.fixture(scope="session")
def fused_demo(shared: Path) -> Path:
    """The model directory of the demo with its own weights and both graphs; skipped where there is no C compiler."""
    from export.__main__ import main
    from operators.build import BuildError, compiler

    try:
        compiler()
    except BuildError as missing:
        pytest.skip(str(missing))
    repository = shared / "fused-demo"
    with FileLock(repository.with_suffix(".lock")):
        if not repository.exists():
            form = ["--target", "cuda", "--precision", "fp16", "--fused", "--no-explain"]
            weights = ["--weights", "models/demo/dat_demo.safetensors"]
            assert main(["dat_demo", *weights, *form, "--repository", str(repository)]) == 0
    return repository / "dat_demo" / "1"


def _export_demo(folder: Path) -> None:
    (block,) = blocks_run_by(__file__)
    lay_out(folder)
    ended = run_block(block, directory=folder)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("my-models/dat_demo/1\n")


def _export_golden(name: str, sampling: str, repository: Path) -> None:
    import torch

    from export.job import ExportJob
    from export.pipeline import run
    from export.progress import Progress
    from models.variants import VARIANTS
    from tests.golden_files import published_state_dict

    weights = repository.with_suffix(".pth")
    torch.save({"model": published_state_dict(name, seed=1)}, weights)
    job = ExportJob(
        variant=VARIANTS[name], repository=repository, weights=weights, sampling=sampling,
        explain=(name, sampling) == EXPLAINED,
    )  # fmt: skip
    run(job, Progress(sys.stderr))
    weights.unlink()
