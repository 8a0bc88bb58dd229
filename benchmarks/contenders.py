"""What is measured against each other: one model's weights in several graphs, run by several runtimes.

A contender's name says runtime and graph: `ort-plain`, `openvino-bf16-ours`. The graphs are `plain`, the exported
plain model, `ours`, what `python -m export` makes of the same weights, and any that the command line adds. All run
with as many threads as there are cores, and none of these spin while they wait.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.plain_dat import PlainDAT
from benchmarks.products import ProductsAlone, matrix_products
from export.source import from_seed
from models.dat import DAT
from models.variants import VARIANTS, Variant
from service.engine.runtime.options import DeviceOptions
from service.engine.runtime.session import OnnxSession
from service.engine.types import Pixels

Logits = NDArray[np.float32]
OPENVINO_PRECISIONS = ("f32", "bf16")
LIMIT = "limit"
PLAIN = "plain"
OURS = "ours"
_OUTPUT = "logits"
_PLAIN_OPSET = 18


class ContenderUnavailable(Exception):
    """A contender that cannot run here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to measure. `run` takes uint8 (batch, height, width, 3) and returns logits, the limit None."""

    name: str
    run: Callable[[Pixels], Logits | None]
    exact: bool
    """Computes in float32 and must give torch's logits; of the others the error is reported."""


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file that takes `image` and gives `logits`."""

    path: Path
    exact: bool
    operators: Path | None = None
    """The library of the operators that it holds beyond the runtime's own."""
    standard: Path | None = None
    """The same in standard operators, by which the CPU says what a GPU should compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One variant with its weights, in torch and as graphs by name; `device` is `cpu` or `cuda`."""

    variant: Variant
    model: DAT
    plain: PlainDAT
    device: str
    batches: Sequence[int]
    graphs: dict[str, Graph] = field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images."""
        return self.variant.input_size, self.variant.input_size


def make_subject(name: str, *, seed: int, device: str, batches: Sequence[int]) -> Subject:
    """Return a variant with random weights by `seed`, in torch alone; its graphs are the caller's to add."""
    variant = VARIANTS[name]
    image_size = (variant.input_size, variant.input_size)
    model = from_seed(seed, variant.config, image_size=image_size).model
    plain = PlainDAT(variant.config, image_size).eval()
    plain.load_state_dict(model.state_dict())
    return Subject(variant=variant, model=model, plain=plain, device=device, batches=batches)


class FromPixels(nn.Module):
    """A model with the normalisation in front, from uint8 (batch, height, width, 3) to logits alone."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DAT | PlainDAT, variant: Variant) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(variant.mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(variant.std).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalise and run."""
        normalised = (image.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean) / self.std
        output: Any = self.model(normalised)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits


def plain_graph(model: PlainDAT, variant: Variant, path: Path) -> None:
    """Export as a user of torch would: the exporter's defaults, a dynamic batch, no translations of our own."""
    side = variant.input_size
    torch.onnx.export(
        FromPixels(model, variant).eval(),
        (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
        path,
        dynamo=True,
        opset_version=_PLAIN_OPSET,
        input_names=["image"],
        output_names=[_OUTPUT],
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )


def available(subject: Subject) -> dict[str, Callable[[], Contender]]:
    """Return what makes each contender, by name; making one raises ContenderUnavailable where it cannot run."""
    makers: dict[str, Callable[[], Contender]] = {
        "torch-plain": partial(_torch, subject, PLAIN),
        "torch-ours": partial(_torch, subject, OURS),
        "compile-plain": partial(_compiled, subject, "compile-plain", "default"),
    }
    if subject.device != "cpu":
        makers |= {
            f"compile-{mode}-plain": partial(_compiled, subject, f"compile-{mode}-plain", mode)
            for mode in ("reduce-overhead", "max-autotune")
        }
    makers |= {f"ort-{name}": partial(_onnxruntime, subject, name) for name in subject.graphs}
    if subject.device == "cpu":
        makers |= {
            f"openvino-{precision}-{name}": partial(_openvino, subject, name, precision)
            for name in subject.graphs
            for precision in OPENVINO_PRECISIONS
        }
        makers[LIMIT] = partial(_limit, subject)
    return makers


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _torch(subject: Subject, which: str) -> Contender:
    return Contender(f"torch-{which}", _in_torch(_placed(subject, which), subject.device), exact=_is_float32(subject))


def _compiled(subject: Subject, name: str, mode: str) -> Contender:
    """torch.compile; each batch size compiled for itself at its first run."""
    compiler = os.environ.get("CXX", "g++")
    if subject.device == "cpu" and shutil.which(compiler) is None:
        raise ContenderUnavailable(f"torch.compile needs a C++ compiler, and there is no {compiler}")
    torch._dynamo.config.recompile_limit = max(len(subject.batches), torch._dynamo.config.recompile_limit)
    compiled = torch.compile(_placed(subject, PLAIN), dynamic=False, mode=mode)
    return Contender(name, _in_torch(compiled, subject.device), exact=_is_float32(subject))


def _placed(subject: Subject, which: str) -> nn.Module:
    """Return the model for the device: float32 on the CPU, float16 with channels last in memory on CUDA."""
    module = FromPixels(subject.plain if which == PLAIN else subject.model, subject.variant).eval()
    if subject.device == "cpu":
        return module
    module.to(subject.device, torch.float16)
    for parameter in module.parameters():
        if parameter.ndim == 4:  # Module.to refuses a module that has tensors of five dimensions too
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def _is_float32(subject: Subject) -> bool:
    return subject.device == "cpu"


def _in_torch(module: Callable[[Tensor], Tensor], device: str) -> Callable[[Pixels], Logits]:
    torch.set_num_threads(cores())

    def run(images: Pixels) -> Logits:
        with torch.no_grad():
            logits: Logits = module(torch.from_numpy(images).to(device)).float().cpu().numpy()
        return logits

    return run


def _onnxruntime(subject: Subject, name: str) -> Contender:
    """ONNX Runtime as the service opens and runs it."""
    graph = subject.graphs[name]
    session = OnnxSession.load(
        graph.path,
        DeviceOptions(
            device=subject.device,
            buckets=tuple(subject.batches),
            cuda_graph_outputs=(_OUTPUT,),
            operators=graph.operators,
            precision="fp32" if graph.operators is None else "fp16",
        ),
        input_shape=(*subject.image_size, 3),
        output_names=(_OUTPUT,),
        reference=graph.standard,
    )
    return Contender(f"ort-{name}", lambda images: session.run(images, (_OUTPUT,))[_OUTPUT], exact=graph.exact)


def _openvino(subject: Subject, name: str, precision: str) -> Contender:
    """OpenVINO with the logits as its only output, compiled for each batch size, which suits it best."""
    try:
        import openvino
    except ImportError as error:
        raise ContenderUnavailable(f"OpenVINO is not installed ({error}); requirements/bench.txt has it") from error
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ContenderUnavailable("OpenVINO computes in bfloat16 on processors that can, and this one cannot")
    graph = subject.graphs[name]
    nodes = onnx.load(graph.path).graph.node
    if foreign := sorted({node.domain for node in nodes} - {"", "ai.onnx"}):
        raise ContenderUnavailable(f"{name} has operators of {', '.join(foreign)}, which OpenVINO misreads or lacks")
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": cores(),
        "NUM_STREAMS": 1,
    }
    requests: dict[int, Any] = {}

    def compiled(batch: int) -> Any:
        model = core.read_model(graph.path)
        model = openvino.Model([model.output(_OUTPUT).node], model.get_parameters())
        model.reshape([batch, *subject.image_size, 3])
        return core.compile_model(model, "CPU", properties).create_infer_request()

    def run(images: Pixels) -> Logits:
        batch = len(images)
        if batch not in requests:
            requests[batch] = compiled(batch)
        logits: Logits = requests[batch].infer([images])[0]
        return logits

    return Contender(f"openvino-{precision}-{name}", run, exact=graph.exact and precision == "f32")


def _limit(subject: Subject) -> Contender:
    made: dict[int, ProductsAlone] = {}

    def run(images: Pixels) -> None:
        batch = len(images)
        if batch not in made:
            made[batch] = ProductsAlone(matrix_products(subject.variant.config, subject.image_size, batch))
        made[batch].run()

    return Contender(LIMIT, run, exact=False)
