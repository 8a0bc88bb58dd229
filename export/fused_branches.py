"""The residual branches of a DAT, attention and MLP, by operators of the domain `dat`.

`BRANCHES` is the table of what becomes what. What `export.fused_layers` says of its layers holds of these; a branch
leaves the bias that ends it to whoever takes the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, cast

from torch import Tensor, nn
from torch.nn import functional as F

from export import operator_calls as calls
from export.fused_layers import Depthwise, OperatorLayer, channels_last
from export.inference_form import move_sampled_biases, scale_rows
from models.deformable_attention import DeformableAttention
from models.layers import MLP, ChannelNorm, ConvMLP, PointwiseConv, SpatialConv
from models.neighborhood_attention import NeighborhoodAttention
from models.sampling import GRID, BilinearSampling
from models.window_attention import WindowAttention


class Branch(OperatorLayer):
    """A residual branch, whose last product leaves `bias` (channels,) to whoever takes the sum."""

    bias: Tensor

    def __init__(self, last: nn.Linear | PointwiseConv) -> None:
        super().__init__()
        assert last.bias is not None
        self.register_buffer("bias", last.bias.detach().clone())
        self.last = Product(last)


class Product(nn.Module):
    """The matrix product of a linear layer, without its bias."""

    weight: Tensor

    def __init__(self, layer: nn.Linear | PointwiseConv) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, self.weight)


class FusedWindows(Branch):
    """`WindowAttention`: padding, shift, windows, biases and mask in one operator."""

    operators = (calls.WINDOW_ATTENTION,)
    qkv_bias: Tensor
    position_bias: Tensor

    def __init__(self, layer: WindowAttention) -> None:
        super().__init__(layer.proj_out)
        self.heads, self.window, self.shift = layer.heads, layer.window, layer.shift
        self.qkv = Product(layer.proj_qkv)
        self.register_buffer("qkv_bias", layer.proj_qkv.bias.detach().clone())
        self.register_buffer("position_bias", layer.position_bias().detach().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        attended = calls.window_attention(
            self.qkv(x), self.qkv_bias, self.position_bias, heads=self.heads, window=self.window, shift=self.shift
        )
        return cast(Tensor, self.last(attended))


class FusedNeighborhood(Branch):
    """`NeighborhoodAttention`, with its biases, in one operator."""

    operators = (calls.NEIGHBORHOOD_ATTENTION,)
    qkv_bias: Tensor
    position_bias: Tensor

    def __init__(self, layer: NeighborhoodAttention) -> None:
        super().__init__(layer.proj)
        self.heads, self.kernel = layer.heads, layer.kernel
        self.qkv = Product(layer.qkv)
        self.register_buffer("qkv_bias", layer.qkv.bias.detach().clone())
        self.register_buffer("position_bias", layer.rpb.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        attended = calls.neighborhood_attention(
            self.qkv(x), self.qkv_bias, self.position_bias, heads=self.heads, kernel=self.kernel
        )
        return cast(Tensor, self.last(attended))


class FusedMLP(Branch):
    """`MLP`: the first bias and the activation in one operator."""

    operators = (calls.BIAS_GELU,)
    first_bias: Tensor

    def __init__(self, layer: MLP) -> None:
        super().__init__(cast(nn.Linear, layer.chunk["linear2"]))
        first = cast(nn.Linear, layer.chunk["linear1"])
        self.first = Product(first)
        self.register_buffer("first_bias", first.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same."""
        return cast(Tensor, self.last(calls.bias_gelu(self.first(x), self.first_bias)))


class FusedConvMLP(Branch):
    """`ConvMLP`: the first bias, the convolution with its skip, and the activation in one operator."""

    first_bias: Tensor

    def __init__(self, layer: ConvMLP) -> None:
        super().__init__(cast(PointwiseConv, layer.linear2[0]))
        first = cast(PointwiseConv, layer.linear1[0])
        assert first.bias is not None
        self.first = Product(first)
        self.register_buffer("first_bias", first.bias.detach().clone())
        self.dwc = Depthwise(layer.dwc, gelu=True)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to the same."""
        return cast(Tensor, self.last(self.dwc(self.first(x), self.first_bias)))


class FusedPositions(OperatorLayer):
    """`OffsetNetwork`, and what makes positions of its offsets, in one operator for all groups."""

    operators = (calls.SAMPLING_POSITIONS,)
    weight: Tensor
    bias: Tensor
    projection: Tensor
    range: Tensor

    def __init__(self, layer: DeformableAttention) -> None:
        super().__init__()
        assert layer.map_size is not None
        convolution, norm = cast(SpatialConv, layer.conv_offset[0]), cast(ChannelNorm, layer.conv_offset[1])
        assert convolution.bias is not None
        self.stride, self.padding = convolution.stride[0], cast(tuple[int, int], convolution.padding)[0]
        self.norm, self.generation = norm.norm, layer.generation
        cell, factor = layer.geometry_of(*layer.map_size).cell, layer.stage.offset_range_factor
        self.bound = calls.BOUND_POSITIONS if factor < 0 else calls.UNBOUND
        if layer.bounds_offsets:
            self.bound = calls.BOUND_OFFSETS
        self.register_buffer("weight", channels_last(convolution))
        self.register_buffer("bias", convolution.bias.detach().clone())
        self.register_buffer("projection", cast(PointwiseConv, layer.conv_offset[3]).weight.detach().flatten(1))
        self.register_buffer("range", cell * factor)

    def forward(self, query: Tensor) -> Tensor:
        """(batch, height, width, channels) to positions (batch, groups, keys, 2)."""
        return calls.sampling_positions(
            query,
            self.weight,
            self.bias,
            self.norm.weight,
            self.norm.bias,
            self.projection,
            self.range,
            stride=self.stride,
            padding=self.padding,
            generation=self.generation,
            bound=self.bound,
            epsilon=self.norm.eps,
        )


class FusedDeformable(Branch):
    """`DeformableAttention` with a table: neither scores nor their bias are in memory.

    Keys lose their bias, which the softmax does not see; that of the values is in the branch's.
    """

    operators = (calls.SAMPLE_FEATURES, calls.DEFORMABLE_ATTENTION)

    def __init__(self, layer: DeformableAttention) -> None:
        move_sampled_biases(layer)
        super().__init__(layer.proj_out)
        assert layer.map_size is not None
        self.layer, self.map_size = layer, layer.map_size
        self.key, self.value = Product(layer.proj_k), Product(layer.proj_v)
        self.positions = None if layer.stage.no_offsets else FusedPositions(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        layer = self.layer
        query = layer.proj_q(x)
        if self.positions is not None:
            position = self.positions(query)
        else:
            position = layer.unmoved(x.shape[0], layer.geometry_of(*self.map_size)).flatten(2, 3)
        sampled = calls.sample_features(x, position)
        attended = calls.deformable_attention(
            query,
            self.key(sampled),
            self.value(sampled),
            position,
            cast(Tensor, layer.rpe_table),
            heads=layer.heads,
            generation=layer.generation,
        )
        return cast(Tensor, self.last(attended))


class SampledDeformable(Branch):
    """`DeformableAttention` with a position bias that is no table, or none: only what it samples is by an operator."""

    def __init__(self, layer: DeformableAttention) -> None:
        move_sampled_biases(layer)
        scale_rows(layer.proj_k, layer.scale)
        layer.scale = 1.0
        layer.sampling = _FEATURES
        super().__init__(layer.proj_out)
        layer.proj_out.register_parameter("bias", None)
        self.layer = layer
        self.operators = () if layer.pools else (calls.SAMPLE_FEATURES,)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        return cast(Tensor, self.layer(x)[0])


class _Features(BilinearSampling):
    """The operator for features; with a table, a layer has one for the whole of its attention."""

    def features(self, tokens: Tensor, position: Tensor) -> Tensor:
        return calls.sample_features(tokens, position.flatten(2, 3))

    def bias(self, table: Tensor, rows: Tensor, columns: Tensor, position: Tensor) -> Tensor:
        return GRID.bias(table, rows, columns, position)


_FEATURES: Final = _Features()


def _deformable(layer: DeformableAttention) -> Branch:
    return FusedDeformable(layer) if layer.bias_kind == "table" else SampledDeformable(layer)


BRANCHES: Final[Mapping[type[nn.Module], Callable[..., Branch]]] = {
    WindowAttention: FusedWindows,
    NeighborhoodAttention: FusedNeighborhood,
    DeformableAttention: _deformable,
    MLP: FusedMLP,
    ConvMLP: FusedConvMLP,
}
"""What each residual branch becomes; norms and perception units between them are `export.fused_layers`'."""
