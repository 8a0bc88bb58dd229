"""Bias and the exact GELU, after a matrix product."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(value: tl.tensor) -> tl.tensor:
    """Return GELU of float32 values by the error function, not its approximation by tanh."""
    return 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))


@triton.jit
def bias_gelu(
    out: tl.tensor,
    x: tl.tensor,
    bias: tl.tensor,
    elements: tl.int64,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write `out = GELU(x + bias)`.

    `out` and `x` are float16 (elements / channels, channels), `bias` is float16 (channels,). `out` may be `x`.
    """
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < elements
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + place % channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, gelu(value).to(tl.float16), mask=inside)
