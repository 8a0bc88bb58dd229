"""What a graph is exported for: the form that each runtime does best with, and what it must not contain.

Invariant: what a target cannot run is refused before anything is exported, and checked in the finished graph.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final, Literal

import onnx

from export import contrib
from export.errors import ExportError
from export.sampling import DEFAULT_OPSET, DEFAULT_STRATEGY, MAX_OPSET
from export.steps import STEPS, Step, in_order
from operators import DOMAIN


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of device with its runtime, the defaults that are best there, and its limits."""

    name: Literal["cpu", "cuda", "tensorrt"]
    opset: int
    max_opset: int
    max_opset_reason: str
    sampling: str
    has_contrib_operators: bool
    """Whether ONNX Runtime's own operators may be used."""
    tuned_for_cpu: bool = False
    """Whether float32 graphs take the form that ONNX Runtime's CPU provider has the faster code for."""
    steps: frozenset[Step] = frozenset()
    """The steps that graphs may take, if they are asked for."""
    default_steps: frozenset[Step] = frozenset()
    """The steps that graphs take by themselves."""
    has_own_operators: bool = False
    """Whether a fused graph may stand beside the model's: whether the operators of the domain `dat` have kernels."""

    def check_steps(self, steps: frozenset[Step]) -> None:
        """Raise ExportError where this target has no such steps."""
        if unknown := in_order(steps - self.steps):
            raise ExportError(
                f"target {self.name} does not take the graph steps {', '.join(unknown)}; leave --graph-steps out, or "
                "choose another --target"
            )

    def check_opset(self, opset: int) -> None:
        """Raise ExportError unless graphs of this opset are read rightly."""
        if opset > self.max_opset:
            raise ExportError(
                f"target {self.name} takes opsets up to {self.max_opset}, not {opset}: {self.max_opset_reason}; "
                "leave --opset out, or choose another --target"
            )

    def check(self, graph: onnx.ModelProto, *, fused: bool = False) -> None:
        """Raise ExportError where a finished graph holds operators that this target does not have.

        Those of the domain `dat`, which a library of its own has, are for a `fused` graph alone.
        """
        domains = {"", "ai.onnx"}
        if self.has_contrib_operators:
            domains.add(contrib.DOMAIN)
        if fused and self.has_own_operators:
            domains.add(DOMAIN)
        unknown = sorted({f"{node.domain}::{node.op_type}" for node in graph.graph.node if node.domain not in domains})
        if unknown:
            raise ExportError(f"target {self.name} has no operators {', '.join(unknown)}, which the graph holds")


TARGETS: Final = {
    target.name: target
    for target in (
        Target(
            "cpu",
            DEFAULT_OPSET,
            MAX_OPSET,
            "torch.onnx promises no newer one",
            DEFAULT_STRATEGY,
            has_contrib_operators=True,
            tuned_for_cpu=True,
        ),
        Target(
            "cuda",
            DEFAULT_OPSET,
            MAX_OPSET,
            "torch.onnx promises no newer one",
            DEFAULT_STRATEGY,
            has_contrib_operators=True,
            steps=frozenset(STEPS),  # none by default: the plain graph is the one that a GPU has timed
            has_own_operators=True,
        ),
        Target(
            "tensorrt",
            DEFAULT_OPSET,
            19,
            "its parser has taken the GridSample of later ones for another interpolation, without an error",
            DEFAULT_STRATEGY,
            has_contrib_operators=False,
        ),
    )
}


def find_target(name: str | None) -> Target:
    """Return the target of that name, or without one that of this machine: cuda where it has a GPU, else cpu."""
    if name is None:
        name = "cuda" if cuda_visible() else "cpu"
    if name not in TARGETS:
        raise ExportError(f"unknown target {name!r}; choose one of: {', '.join(TARGETS)}")
    return TARGETS[name]


def cuda_visible() -> bool:
    """Tell whether this machine has an NVIDIA GPU that processes may use, by asking its driver.

    Neither the torch nor the ONNX Runtime that exports needs to be a CUDA build; CUDA_VISIBLE_DEVICES is heeded.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def contrib_operators(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of ONNX Runtime's own operators in a graph, in alphabetical order."""
    return tuple(sorted({node.op_type for node in graph.graph.node if node.domain == contrib.DOMAIN}))
