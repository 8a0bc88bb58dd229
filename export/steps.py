"""The steps by which a graph can depart from its plain form, each by itself, in ONNX Runtime's operators alone.

Every step computes the same function but for rounding. Which of them a target may take, and takes by itself, is in
`export.targets`; docs/decisions/0040 says what each is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from export.errors import ExportError
from export.sampling import MIN_OPSET


class Step(StrEnum):
    """A step, under the name that the command line and the manifest give it."""

    ATTENTION = "attention"
    SKIP_NORM = "skip_norm"
    HALF_WEIGHTS = "half_weights"
    BIASES = "biases"
    PATCHES = "patches"
    GATHERS = "gathers"


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a step does, and needs."""

    summary: str
    min_opset: int = MIN_OPSET
    precisions: frozenset[str] = frozenset({"fp32", "fp16"})


STEPS: Final = {
    Step.ATTENTION: StepFacts(
        "windows as heads, and deformable attention, of the operator Attention, keys padded to a multiple of four",
        min_opset=23,
    ),
    Step.SKIP_NORM: StepFacts("residual sum, the bias before it and the norm after it in one operator"),
    Step.HALF_WEIGHTS: StepFacts(
        "interpolation weights in float16 from the distance on", precisions=frozenset({"fp16"})
    ),
    Step.BIASES: StepFacts("no bias on keys, and that on values in the output projection"),
    Step.PATCHES: StepFacts("convolutions of whole patches as matrix products"),
    Step.GATHERS: StepFacts("roll and cut into windows as one gather, and back as another"),
}
ALL: Final = "all"


def parse_steps(text: str, precision: str) -> frozenset[Step]:
    """Return the steps that a list with commas names; `all` are those that the precision has.

    Raises ExportError where there is no such step, or not in this precision.
    """
    if text == ALL:
        return frozenset(step for step, facts in STEPS.items() if precision in facts.precisions)
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in list(Step)]
    if unknown:
        raise ExportError(f"unknown graph steps {', '.join(unknown)}; choose from: {', '.join(STEPS)}, or {ALL}")
    steps = frozenset(map(Step, names))
    for step in in_order(steps):
        if precision not in STEPS[step].precisions:
            wanted = " and ".join(sorted(STEPS[step].precisions))
            raise ExportError(f"graph step {step} is for {wanted}, not {precision}; leave it out, or give --precision")
    return steps


def min_opset(steps: Iterable[Step]) -> int:
    """Return the oldest opset that has the operators of these steps."""
    return max((STEPS[step].min_opset for step in steps), default=MIN_OPSET)


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return steps in the order of their table."""
    chosen = frozenset(steps)
    return tuple(step for step in STEPS if step in chosen)
