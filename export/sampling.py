"""How bilinear sampling is written in ONNX: one strategy chooses the form in the model and its translation.

Deformable attention samples its feature map and its position bias with `torch.nn.functional.grid_sample`, bilinear,
`align_corners=True`, zero padding, or in the separable form of `models.sampling`. A strategy has the model use one
form, and replaces torch.onnx's own translation of the two ATen operators behind `grid_sample`, so that the operators
in the file are chosen here and nowhere else:

- `separable`: matrix products alone, and no operator for sampling; the fastest wherever it was measured;
- `gridsample`: the GridSample operator, whose mode is spelled "bilinear" in opsets 16 to 19 and "linear" from 20 on;
- `gather`: gathers and arithmetic, for runtimes where GridSample is missing or wrong.

Invariants: all equal torch, positions outside the map included (`gather` for every finite position; GridSample as far
as the runtime's pixel index reaches, 2^62 in ONNX Runtime); any other kind of sampling (nearest, bicubic, border,
reflection, unaligned corners, volumes) raises ExportError instead of becoming something else; `check_graph` accepts
only graphs in which the strategy was used for every sampling of the model.
"""

# ruff: noqa: A002 - the translations carry the argument names of the ATen schema, one of which is `input`

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnx
import onnxscript
import torch

from export.errors import ExportError
from models.sampling import GRID, SEPARABLE, BilinearSampling

MIN_OPSET: Final = 18
"""The oldest opset that torch.onnx's translations are written for; conversion downwards is not dependable."""
MAX_OPSET: Final = 23
"""The newest opset that torch.onnx promises."""
DEFAULT_OPSET: Final = 18
"""Keeps GridSample in the form that every runtime reads rightly: TensorRT's parser takes that of 20 for nearest."""

SAMPLING_OPERATORS: Final = (torch.ops.aten.grid_sampler.default, torch.ops.aten.grid_sampler_2d.default)

_INTERPOLATIONS: Final = ("bilinear", "nearest", "bicubic")
_PADDINGS: Final = ("zeros", "border", "reflection")

Translation = Callable[..., Any]

# In a translation these record nodes instead of computing tensors, which their annotations do not know of.
op18: Any = onnxscript.opset18
op20: Any = onnxscript.opset20


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to write sampling, for a range of opsets (both ends included).

    The model samples in `form`. Where that calls the sampler, `translate` writes each call as `nodes_per_sampling`
    nodes of `operator`, among others; where `translate` is None, the sampler must not be called. `mode` is the
    attribute of GridSample where that is the operator, and None where the graph must not contain GridSample at all.
    """

    name: str
    min_opset: int
    max_opset: int
    form: BilinearSampling = GRID
    translate: Translation | None = None
    operator: str = ""
    nodes_per_sampling: int = 0
    mode: str | None = None

    def translations(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """Return the table to give to torch.onnx.export as `custom_translation_table`."""
        return dict.fromkeys(SAMPLING_OPERATORS, self.translate or _refuse_sampler)


def _refuse_sampler(*_: Any, **__: Any) -> Any:
    """Refuse a call of the sampler in a model that should have none."""
    raise ExportError("this model calls grid_sample itself, which the sampling strategy separable does not write")


def _require_supported(data: Any, interpolation_mode: int, padding_mode: int, align_corners: bool) -> None:
    """Raise ExportError unless the arguments of aten::grid_sampler are the ones that every strategy is exact for."""
    asked = []
    if interpolation_mode != 0:
        asked.append(f"mode={_INTERPOLATIONS[interpolation_mode]!r}")
    if padding_mode != 0:
        asked.append(f"padding_mode={_PADDINGS[padding_mode]!r}")
    if not align_corners:
        asked.append("align_corners=False")
    if data.shape is None or len(data.shape) != 4:
        asked.append(f"an input of shape {data.shape}")
    if asked:
        raise ExportError(
            f"grid_sample with {', '.join(asked)} cannot be exported; "
            "supported: 4-D input, mode='bilinear', padding_mode='zeros', align_corners=True"
        )


def _ints(*values: int) -> Any:
    return op18.Constant(value_ints=list(values))


def _floats(*values: float) -> Any:
    return op18.Constant(value_floats=list(values))


def gridsample_bilinear(
    input: Any,
    grid: Any,
    interpolation_mode: int = 0,
    padding_mode: int = 0,
    align_corners: bool = False,
) -> Any:
    """Translate to GridSample of opset 16.

    grid_sampler(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners) -> Tensor
    """
    _require_supported(input, interpolation_mode, padding_mode, align_corners)
    return op18.GridSample(input, grid, align_corners=1, mode="bilinear", padding_mode="zeros")


def gridsample_linear(
    input: Any,
    grid: Any,
    interpolation_mode: int = 0,
    padding_mode: int = 0,
    align_corners: bool = False,
) -> Any:
    """Translate to GridSample of opset 20.

    grid_sampler(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners) -> Tensor
    """
    _require_supported(input, interpolation_mode, padding_mode, align_corners)
    return op20.GridSample(input, grid, align_corners=1, mode="linear", padding_mode="zeros")


def gather_bilinear(
    input: Any,
    grid: Any,
    interpolation_mode: int = 0,
    padding_mode: int = 0,
    align_corners: bool = False,
) -> Any:
    """Translate to four gathers of whole channel vectors, from the map with a border of one zero pixel.

    grid_sampler(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners) -> Tensor

    Positions are clamped to the far edge of that border, where nothing but zeros is read: this is zero padding
    without a single comparison, and no index can leave the map, however far the position lies outside.
    """
    _require_supported(input, interpolation_mode, padding_mode, align_corners)
    one, rest, pair = _ints(1), _ints(-1), _ints(2)
    batch = op18.Shape(input, start=0, end=1)
    channels = op18.Shape(input, start=1, end=2)
    height = op18.Shape(input, start=2, end=3)
    width = op18.Shape(input, start=3, end=4)
    outer = op18.Shape(grid, start=1, end=3)

    # (N, C, H, W) -> rows (N, (H + 2)(W + 2), C): one gather fetches all channels of a pixel, contiguous in memory.
    padded = op18.Pad(input, _ints(0, 0, 1, 1, 0, 0, 1, 1), mode="constant")
    row_length = op18.Add(width, pair)
    flat = op18.Reshape(padded, op18.Concat(batch, channels, rest, axis=0))
    rows = op18.Transpose(flat, perm=[0, 2, 1])

    # Positions (x, y) in pixels of the unpadded map, in the order of operations of torch.
    size = op18.Cast(op18.Concat(width, height, axis=0), to=onnx.TensorProto.FLOAT)
    last = op18.Sub(size, _floats(1.0))
    half = op18.Div(op18.Add(grid, _floats(1.0)), _floats(2.0))
    position = op18.Mul(op18.Reshape(half, op18.Concat(batch, rest, pair, axis=0)), last)
    position = op18.Min(op18.Max(position, _floats(-1.0)), size)

    # The upper left neighbour: at most size - 1, so that the other three lie inside the border as well.
    corner = op18.Min(op18.Floor(position), last)
    fraction = op18.Sub(position, corner)
    fraction_x, fraction_y = op18.Split(fraction, axis=2, num_outputs=2)
    opposite_x, opposite_y = op18.Split(op18.Sub(_floats(1.0), fraction), axis=2, num_outputs=2)
    index_x, index_y = op18.Split(op18.Add(op18.Cast(corner, to=onnx.TensorProto.INT64), one), axis=2, num_outputs=2)
    top_left = op18.Add(op18.Mul(index_y, row_length), index_x)
    bottom_left = op18.Add(top_left, row_length)

    def weighted(index: Any, weight_x: Any, weight_y: Any) -> Any:
        return op18.Mul(op18.GatherND(rows, index, batch_dims=1), op18.Mul(weight_x, weight_y))

    top = op18.Add(
        weighted(top_left, opposite_x, opposite_y),
        weighted(op18.Add(top_left, one), fraction_x, opposite_y),
    )
    bottom = op18.Add(
        weighted(bottom_left, opposite_x, fraction_y),
        weighted(op18.Add(bottom_left, one), fraction_x, fraction_y),
    )
    sampled = op18.Transpose(op18.Add(top, bottom), perm=[0, 2, 1])
    return op18.Reshape(sampled, op18.Concat(batch, channels, outer, axis=0))


STRATEGIES: Final[tuple[Strategy, ...]] = (
    Strategy("separable", MIN_OPSET, MAX_OPSET, SEPARABLE),
    Strategy("gridsample", MIN_OPSET, 19, GRID, gridsample_bilinear, "GridSample", 1, "bilinear"),
    Strategy("gridsample", 20, MAX_OPSET, GRID, gridsample_linear, "GridSample", 1, "linear"),
    Strategy("gather", MIN_OPSET, MAX_OPSET, GRID, gather_bilinear, "GatherND", 4),
)
DEFAULT_STRATEGY: Final = "separable"
STRATEGY_NAMES: Final = tuple(dict.fromkeys(strategy.name for strategy in STRATEGIES))


def select_strategy(name: str, opset: int) -> Strategy:
    """Return the strategy `name` for an opset; ExportError names the strategies, or its opsets, where there is none."""
    if name not in STRATEGY_NAMES:
        raise ExportError(f"unknown sampling strategy {name!r}; choose one of: {', '.join(STRATEGY_NAMES)}")
    candidates = [strategy for strategy in STRATEGIES if strategy.name == name]
    for strategy in candidates:
        if strategy.min_opset <= opset <= strategy.max_opset:
            return strategy
    supported = sorted({o for each in candidates for o in range(each.min_opset, each.max_opset + 1)})
    raise ExportError(f"opset {opset} is not supported; choose one of: {', '.join(map(str, supported))}")


def count_samplings(program: torch.export.ExportedProgram) -> int:
    """Return how many times the traced model samples: the calls that a strategy has to account for."""
    return sum(
        node.op == "call_function" and node.target in SAMPLING_OPERATORS
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    )


def check_graph(
    model: onnx.ModelProto, *, strategy: Strategy, opset: int, samplings: int, domains: Mapping[str, int]
) -> None:
    """Raise ExportError unless `model` samples `samplings` times in the way of `strategy`, at `opset`, and purely.

    Purely: only operators of the default domain and of `domains`, by their versions, no functions, and the opset that
    was asked for. torch.onnx keeps another opset, with a warning only, where it cannot convert.
    """
    imports = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    foreign = {domain: version for domain, version in imports.items() if domain != "ai.onnx"}
    if imports.get("ai.onnx") != opset or not foreign.items() <= domains.items():
        raise ExportError(f"the exported graph declares {imports} instead of opset {opset} and {dict(domains)}")
    if model.functions:
        raise ExportError(f"the exported graph holds functions: {', '.join(f.name for f in model.functions)}")
    undeclared = sorted(
        {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", *foreign)}
    )
    if undeclared:
        raise ExportError(f"the exported graph holds operators outside the ONNX standard: {', '.join(undeclared)}")
    counts = Counter(node.op_type for node in model.graph.node)
    grid_samples = samplings if strategy.mode else 0
    if counts["GridSample"] != grid_samples:
        raise ExportError(
            f"{strategy.name}: the exported graph holds {counts['GridSample']} GridSample nodes "
            f"for {samplings} samplings, where {grid_samples} were expected"
        )
    if counts[strategy.operator] < strategy.nodes_per_sampling * samplings:
        raise ExportError(
            f"{strategy.name}: the exported graph holds only {counts[strategy.operator]} {strategy.operator} nodes "
            f"for {samplings} samplings, which take {strategy.nodes_per_sampling} each"
        )
    for node in model.graph.node:
        if node.op_type == "GridSample":
            _check_grid_sample(node, strategy)


def _check_grid_sample(node: onnx.NodeProto, strategy: Strategy) -> None:
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    expected = {"align_corners": 1, "mode": (strategy.mode or "").encode(), "padding_mode": b"zeros"}
    if attributes != expected:
        raise ExportError(f"{node.name}: GridSample with {attributes} was exported where {expected} was translated")
