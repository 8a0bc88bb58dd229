"""What each kernel is launched with: the types of its parameters, in the order of its function's arguments.

The arguments that are not here are constants, which `kernels.table` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels.activation import bias_gelu
from kernels.convolution import depthwise_convolution
from kernels.deformable import deformable_attention
from kernels.neighborhood import neighborhood_attention
from kernels.norm import residual_layer_norm
from kernels.perception import perception_norm
from kernels.positions import sampling_positions
from kernels.sampling import feature_sampling
from kernels.stem import patch_embedding
from kernels.window import window_attention


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and the types of what it is launched with, in order; its other arguments are constants."""

    function: Any
    parameters: dict[str, str]

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.function.__name__)


def _halves(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp16")


NORM = Kernel(
    residual_layer_norm,
    _halves("total", "normed", "residual", "x", "bias", "gain", "shift") | {"rows": "i32", "epsilon": "fp32"},
)
GELU = Kernel(bias_gelu, _halves("out", "x", "bias") | {"elements": "i64"})
WINDOW = Kernel(window_attention, _halves("out", "qkv", "qkv_bias", "position_bias") | {"scale": "fp32"})
NEIGHBORHOOD = Kernel(neighborhood_attention, dict(WINDOW.parameters))
SAMPLING = Kernel(feature_sampling, _halves("out", "x") | {"position": "*fp32", "keys": "i32"})
DEFORMABLE = Kernel(
    deformable_attention,
    _halves("out", "query", "key", "value") | {"position": "*fp32"} | _halves("table") | {"scale": "fp32"},
)

EMBEDDING = Kernel(
    patch_embedding,
    _halves("out") | {"image": "*u8"} | _halves("beyond", "weight", "bias", "gain", "shift") | {"epsilon": "fp32"},
)
PERCEPTION = Kernel(
    perception_norm,
    _halves("total", "normed", "residual", "x", "added", "weight", "bias", "gain", "shift") | {"epsilon": "fp32"},
)
POSITIONS = Kernel(
    sampling_positions,
    {"out": "*fp32"}
    | _halves("query", "weight", "bias", "gain", "shift", "projection")
    | {"scale": "*fp32", "epsilon": "fp32"},
)
DEPTHWISE = Kernel(depthwise_convolution, _halves("out", "x", "added", "weight", "bias"))
