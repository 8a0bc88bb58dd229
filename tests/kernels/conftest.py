"""What the tests of kernels share. Triton has packages for Linux only; elsewhere none of them is collected."""

from __future__ import annotations

import sys

import pytest
import torch

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
