"""The matrix-product limit: what a model would take if it were nothing but its matrix products.

The products are read off the plain model while it runs on shapes alone: linear layers, convolutions over all channels
as products of gathered patches, and both products of every attention. Depthwise convolutions are none. Then they run
as bare MatMul nodes, each with weights of its own, reading and writing memory that is there already, without the
reshaping, norms and additions between them.

Neighbourhood attention multiplies one row per query with keys of its own. Its products count with the operations
that they have, as though all queries shared their keys: less than any implementation can need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.plain_dat import PlainDAT
from models.config import DATConfig
from service.engine.runtime.library import ort
from service.engine.runtime.loading import open_session

_OPSET = 18


class Product(NamedTuple):
    """(matrices, rows, inner) times (matrices, inner, columns), the latter a constant where it holds weights."""

    matrices: int
    rows: int
    inner: int
    columns: int
    weights: bool

    @property
    def macs(self) -> int:
        """Multiplications, each with its addition."""
        return self.matrices * self.rows * self.inner * self.columns


def matrix_products(config: DATConfig, image_size: tuple[int, int], batch: int) -> list[Product]:
    """Return the products of a model in the order in which it computes them."""
    with torch.device("meta"):
        model: nn.Module = PlainDAT(config, image_size).eval()
        images = torch.empty(batch, 3, *image_size)
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        model(images)
    return recorder.products


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the matrix products among what torch computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        match func.overloadpacket.__name__:
            case "mm":
                self.products.append(product_of_weights(args[0].shape, args[1].shape))
            case "addmm":
                self.products.append(product_of_weights(args[1].shape, args[2].shape))
            case "bmm":
                self.products.append(product_of_maps(args[0].shape, args[1].shape))
            case "convolution" if args[8] == 1:
                self.products.append(_of_convolution(args[1], result))
        return result


def product_of_weights(left: Sequence[int], right: Sequence[int]) -> Product:
    """(rows, inner) times (inner, columns)."""
    return Product(1, left[0], left[1], right[1], weights=True)


def product_of_maps(left: Sequence[int], right: Sequence[int]) -> Product:
    """(matrices, rows, inner) times (matrices, inner, columns), longer side as rows; single rows are put together."""
    matrices, rows, inner, columns = left[0], left[1], left[2], right[2]
    if rows < columns and rows > 1:
        rows, columns = columns, rows
    if rows == 1:
        matrices, rows = 1, matrices
    return Product(matrices, rows, inner, columns, weights=False)


def _of_convolution(weight: Tensor, result: Tensor) -> Product:
    batch, channels, height, width = result.shape
    return Product(1, batch * height * width, math.prod(weight.shape[1:]), channels, weights=True)


def limit_graph(products: Sequence[Product]) -> onnx.ModelProto:
    """Return a graph of nothing but the products.

    Left operands, and right ones that are no weights, are inputs, one for each shape; `product_<i>` are the outputs.
    """
    generator = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    weights, nodes, outputs = [], [], []

    def given(*shape: int) -> str:
        name = "x".join(map(str, shape))
        inputs[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        return name

    for index, each in enumerate(products):
        lead = () if each.weights else (each.matrices,)
        left = given(*lead, each.rows, each.inner)
        if each.weights:
            right = f"weights_{index}"
            values = generator.standard_normal((each.inner, each.columns), np.float32)
            weights.append(onnx.numpy_helper.from_array(values, right))
        else:
            right = given(*lead, each.inner, each.columns)
        name = f"product_{index}"
        nodes.append(helper.make_node("MatMul", [left, right], [name], name))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, (*lead, each.rows, each.columns)))
    graph = helper.make_graph(nodes, "products", list(inputs.values()), outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


class ProductsAlone:
    """The products in ONNX Runtime, with the options that the service opens its sessions with."""

    def __init__(self, products: Sequence[Product]) -> None:
        self._session = open_session(
            limit_graph(products).SerializeToString(), [("CPUExecutionProvider", {})], threads=0
        )
        generator = np.random.default_rng(1)
        self._binding = self._session.io_binding()
        for each in self._session.get_inputs():
            values = generator.standard_normal(each.shape, np.float32)
            self._binding.bind_ortvalue_input(each.name, ort.OrtValue.ortvalue_from_numpy(values))
        results: dict[tuple[int, ...], Any] = {}
        for each in self._session.get_outputs():
            # Nobody reads the results; those of one shape go to one place, as they do where memory is reused.
            shape = tuple(each.shape)
            if shape not in results:
                results[shape] = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            self._binding.bind_ortvalue_output(each.name, results[shape])

    def run(self) -> None:
        """Compute every product once."""
        self._session.run_with_iobinding(self._binding)
