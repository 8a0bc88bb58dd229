"""Models that several test modules need, exported once a run however many processes run it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import torch
from filelock import FileLock

from export.job import ExportJob
from export.pipeline import run
from export.progress import Progress
from models.demo.train import WEIGHTS_FILE
from models.variants import VARIANTS
from tests.golden_files import published_state_dict


class ExportOnce(Protocol):
    """Gives the repository that holds a variant, exported with a sampling strategy, and with explain.onnx if asked."""

    def __call__(self, name: str, sampling: str = "gridsample", *, explain: bool = False) -> Path: ...


@pytest.fixture(scope="session", autouse=True)
def _torch_without_trace() -> Iterator[None]:
    """Keep pytest's log capture from making torch.export write its trace, which takes a third of an export's time."""
    trace = logging.getLogger("torch.__trace")
    trace.disabled = True
    yield
    trace.disabled = False


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> ExportOnce:
    """Export variants from weight files as the command line would, each once.

    The demo has its own weights, other variants the golden ones of seed 1, written as the published files are.
    """
    shared = tmp_path_factory.getbasetemp()
    root = (shared if worker_id == "master" else shared.parent) / "exported"
    root.mkdir(exist_ok=True)

    def export(name: str, sampling: str = "gridsample", *, explain: bool = False) -> Path:
        repository = root / f"{name}-{sampling}{'-explain' if explain else ''}"
        with FileLock(repository.with_suffix(".lock")):
            if not repository.exists():
                weights = WEIGHTS_FILE
                if name != "dat_demo":
                    weights = repository.with_suffix(".pth")
                    torch.save({"model": published_state_dict(name, seed=1)}, weights)
                repository.mkdir()
                job = ExportJob(
                    variant=VARIANTS[name], repository=repository, weights=weights, sampling=sampling, explain=explain
                )
                run(job, Progress(sys.stderr))
                if weights != WEIGHTS_FILE:
                    weights.unlink()
        return repository

    return export
