"""What the tests of kernels share; without Triton, which has no package for every platform, they are skipped."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton has packages for Linux only")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
