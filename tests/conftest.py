"""Models that several test modules need, exported once a run however many processes run it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from export.pipeline import ExportJob, run
from export.progress import Progress
from models.demo.train import WEIGHTS_FILE
from models.variants import VARIANTS
from tests.golden_files import published_state_dict

Exported = Callable[[str], Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Exported:
    """Return the repository that holds the named variant, exported from its weight file as the command line would.

    The demo has its own weights, other variants the golden ones of seed 1, written as the published files are.
    """
    shared = tmp_path_factory.getbasetemp()
    root = (shared if worker_id == "master" else shared.parent) / "exported"
    root.mkdir(exist_ok=True)

    def export(name: str) -> Path:
        repository = root / name
        with FileLock(root / f"{name}.lock"):
            if not repository.exists():
                weights = WEIGHTS_FILE
                if name != "dat_demo":
                    weights = root / f"{name}.pth"
                    torch.save({"model": published_state_dict(name, seed=1)}, weights)
                repository.mkdir()
                run(ExportJob(variant=VARIANTS[name], repository=repository, weights=weights), Progress(sys.stderr))
        return repository

    return export
