"""What the tests of kernels share; without Triton, which has packages for Linux only, none is collected."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
