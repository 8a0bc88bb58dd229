"""From a torch model to one ONNX graph: uint8 pixels in, the named float32 outputs out.

Invariants of the graph: its input is `image`, uint8 (batch, height, width, 3); the normalisation is inside; its
outputs are `OUTPUT_NAMES`, float32, batch first; batch may be any number from 1. Weights are in the file itself, every
published variant being far below the 2 GiB that a protobuf can hold. It says nothing of the machine it was made on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import onnx
import onnx_ir
import onnxscript
import onnxscript.optimizer
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn

from export import contrib
from export.errors import ExportError
from export.inference_form import inference_form
from export.sampling import Strategy, check_graph, count_samplings
from export.steps import Step
from models.dat import DAT

INPUT_NAME: Final = "image"
STAGE_NAMES: Final = ("stage1", "stage2", "stage3", "stage4")
CLASS_OUTPUT: Final = "logits"
OUTPUT_NAMES: Final = (CLASS_OUTPUT, "embedding", *STAGE_NAMES)

_EXAMPLE_BATCH: Final = 2  # torch.export would take a batch of 1 for a constant

_op18: Any = onnxscript.opset18  # records nodes in a translation, which its annotations do not know of


class Normalisation(NamedTuple):
    """Mean and standard deviation per RGB channel, on the scale 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ImageModel(nn.Module):
    """A DAT that takes images as they are sent: uint8 (batch, height, width, 3), RGB.

    Its forward returns what `OUTPUT_NAMES` lists, in that order, stage features as (batch, channels, height, width).
    The normalisation moves into the weights of the stem, which are changed in place; where the stem pads its input,
    the mean is subtracted before, since what is padded is the normalised image.
    """

    shift: Tensor | None

    def __init__(self, model: DAT, normalisation: Normalisation) -> None:
        super().__init__()
        self.model = model
        stem = model.patch_proj[0]
        assert isinstance(stem, nn.Conv2d)
        assert stem.bias is not None
        shift, scale = (torch.tensor(values) * 255 for values in normalisation)
        pads = any(stem.padding)
        with torch.no_grad():
            stem.weight /= scale.reshape(1, 3, 1, 1)
            if not pads:
                stem.bias -= (stem.weight * shift.reshape(1, 3, 1, 1)).sum((1, 2, 3))
        self.register_buffer("shift", shift if pads else None, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run on pixels from 0 to 255."""
        output = self.model(self.pixels(image))
        return output.logits, output.embedding, *output.stages

    def pixels(self, image: Tensor) -> Tensor:
        """Return images, uint8 (batch, height, width, 3), as the changed stem takes them."""
        pixels = image.float()
        if self.shift is not None:
            pixels = pixels - self.shift
        return pixels.permute(0, 3, 1, 2)


def export_graph(
    model: DAT,
    normalisation: Normalisation,
    *,
    strategy: Strategy,
    opset: int,
    example_size: tuple[int, int],
    tuned_for_cpu: bool = False,
    steps: Collection[Step] = (),
    output_names: tuple[str, ...] = OUTPUT_NAMES,
    front: type[ImageModel] = ImageModel,
) -> onnx.ModelProto:
    """Return the ONNX graph of `model`, checked to be what was asked for.

    `front` takes the images and gives what `output_names` lists. Where the model was built for one image size, that is
    the graph's; otherwise height and width are dynamic and `example_size` is only what is traced. `tuned_for_cpu`
    allows operators and layouts that only ONNX Runtime has, and has on the CPU; of `steps` those
    are taken that change layers. Raises ExportError where the graph
    would not be exactly that.
    """
    size = model.image_size
    return translate(
        front(inference_form(model, strategy.form, tuned_for_cpu=tuned_for_cpu, steps=steps), normalisation).eval(),
        (torch.zeros(_EXAMPLE_BATCH, *(size or example_size), 3, dtype=torch.uint8),),
        strategy=strategy,
        opset=opset,
        input_names=(INPUT_NAME,),
        output_names=output_names,
        dynamic_shapes=({0: "batch"} if size else {0: "batch", 1: "height", 2: "width"},),
        domains={contrib.DOMAIN: contrib.VERSION} if tuned_for_cpu else {},
    )


def translate(
    module: nn.Module,
    example: tuple[Tensor, ...],
    *,
    strategy: Strategy,
    opset: int,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: tuple[dict[int, str], ...],
    domains: Mapping[str, int] = MappingProxyType({}),
) -> onnx.ModelProto:
    """Trace a module in evaluation mode on example inputs and return its graph, simplified and checked.

    `dynamic_shapes` names the dynamic axes of each input; their example lengths must be at least 2. Operators may be
    standard, or of `domains`, by their versions. Raises ExportError where the module samples in a way that `strategy`
    is not exact for, and where the graph is not what was asked for.
    """
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=dynamic_shapes,
                custom_translation_table=strategy.translations() | _gelu_translation(opset),
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise _explain(error) from error
    if program is None or program.exported_program is None:
        raise ExportError("torch.onnx.export returned no program")
    _simplify(program.model)
    graph: onnx.ModelProto = program.model_proto
    _forget_origin(graph)
    check_graph(
        graph, strategy=strategy, opset=opset, samplings=count_samplings(program.exported_program), domains=domains
    )
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _gelu_translation(opset: int) -> dict[Any, Any]:
    """Return the translation of GELU for opsets that have no operator for it.

    torch.onnx multiplies in an order in which ONNX Runtime does not recognise a GELU and so does not fuse it.
    """
    return {} if opset >= 20 else {torch.ops.aten.gelu.default: gelu_from_erf}


def gelu_from_erf(self: Any, approximate: str = "none") -> Any:
    """Translate to x * (1 + erf(x / sqrt(2))) * 0.5, in that order.

    gelu(Tensor self, *, str approximate='none') -> Tensor
    """
    if approximate != "none":
        raise ExportError(f"GELU with approximate={approximate!r} cannot be exported; supported: the exact one")
    scaled = _op18.Div(self, _op18.Constant(value_float=math.sqrt(2)))
    doubled = _op18.Mul(self, _op18.Add(_op18.Erf(scaled), _op18.Constant(value_float=1.0)))
    return _op18.Mul(doubled, _op18.Constant(value_float=0.5))


def _simplify(model: onnx_ir.Model) -> None:
    """Fold constants and drop what is unused or said twice, in place.

    torch.onnx's own optimisation does the same, and then searches for patterns that runtimes find as well; that takes
    longer than the rest of the export. GridSample is never folded, so that it can be counted.
    """
    onnxscript.optimizer.fold_constants(model, should_fold=lambda node: False if node.op_type == "GridSample" else None)
    for simplification in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        simplification(model)


def _explain(error: BaseException) -> ExportError:
    """Return the ExportError that a translation raised, out of the exporter's wrappings, or the innermost cause."""
    innermost = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    if isinstance(innermost, ExportError):
        return innermost
    return ExportError(f"torch.onnx cannot export this model: {type(innermost).__name__}: {innermost}")


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says on every export and nobody can act on; other warnings pass."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
            yield
    finally:
        registration.setLevel(level)


def _forget_origin(graph: onnx.ModelProto) -> None:
    """Drop the stack traces and file names that the exporter attaches: they tell of its machine, not of the model."""
    for annotated in (graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output):
        annotated.ClearField("metadata_props")
        annotated.ClearField("doc_string")
    for value in (*graph.graph.value_info, *graph.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
