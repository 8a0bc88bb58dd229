"""What the export tests share: a small network with its graph, traced once."""

from __future__ import annotations

from typing import NamedTuple

import onnx
import pytest

from export.graph import Normalisation, export_graph
from export.sampling import select_strategy
from export.source import from_seed
from models.dat import DAT
from tests.export.networks import SIZE, first_generation

NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Exported(NamedTuple):
    model: DAT
    graph: onnx.ModelProto


@pytest.fixture(scope="session")
def first_exported() -> Exported:
    """The small first-generation network with its graph."""
    model = from_seed(0, first_generation(), image_size=SIZE).model
    strategy = select_strategy("gridsample", 18)
    return Exported(model, export_graph(model, NORMALISATION, strategy=strategy, opset=18, example_size=SIZE))
