"""DAT and DAT++ as one network, built from a `DATConfig` for inference and export.

Between layers a feature map is (batch, height, width, channels). With a fixed input size every shape but the batch is
a constant and everything that depends on the size alone is computed once; `image_size=None` leaves height and width
open, for configurations of the second generation that allow it.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn

from models.config import STAGES, DATConfig, SizeError, StageConfig
from models.deformable_attention import DeformableAttention, Sampling
from models.layers import (
    MLP,
    ChannelNorm,
    ConvMLP,
    LayerScale,
    PointwiseConv,
    ResidualDepthwiseConv,
    down_projection,
    patch_embedding,
)
from models.neighborhood_attention import NeighborhoodAttention
from models.sampling import BilinearSampling
from models.window_attention import WindowAttention


class DATOutput(NamedTuple):
    """What a DAT computes of a batch.

    Attributes:
        logits: (batch, classes).
        embedding: (batch, channels of the last stage), the pooled vector that the head sees.
        stages: four maps (batch, channels, height, width) at strides 4, 8, 16, 32, before each down projection.
        sampling: where each deformable layer looked, in the order of `DAT.deformable_layers`.
    """

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...]
    sampling: tuple[Sampling, ...]


class Stage(nn.Module):
    """One stage: its blocks, under the published parameter names."""

    def __init__(self, config: DATConfig, index: int, *, dim_in: int, image_size: tuple[int, int] | None) -> None:
        super().__init__()
        stage = config.stages[index]
        blocks = range(len(stage.layers))
        self.proj = PointwiseConv(dim_in, stage.dim) if dim_in != stage.dim else nn.Identity()
        self.layer_norms = nn.ModuleList(ChannelNorm(stage.dim) for _ in range(2 * len(blocks)))
        self.attns = nn.ModuleList(attention(config, index, letter, image_size) for letter in stage.layers)
        self.mlps = nn.ModuleList((ConvMLP if stage.dwc_mlp else MLP)(stage.dim, config.expansion) for _ in blocks)
        self.layer_scales = nn.ModuleList(
            LayerScale(stage.dim, stage.layer_scale) if stage.layer_scale > 0 else nn.Identity()
            for _ in range(2 * len(blocks))
        )
        self.local_perception_units = nn.ModuleList(
            ResidualDepthwiseConv(stage.dim) if stage.lpu else nn.Identity() for _ in blocks
        )

    def forward(self, x: Tensor, *, with_attention: bool) -> tuple[Tensor, list[Sampling]]:
        """(batch, height, width, dim_in) to (batch, height, width, dim), and the samplings of its D layers."""
        samplings = []
        x = self.proj(x)
        for block, (attn, mlp) in enumerate(zip(self.attns, self.mlps, strict=True)):
            x = self.local_perception_units[block](x)
            normed = self.layer_norms[2 * block](x)
            if isinstance(attn, DeformableAttention):
                branch, sampling = attn(normed, with_attention=with_attention)
                samplings.append(sampling)
            else:
                branch = attn(normed)
            x = x + self.layer_scales[2 * block](branch)
            x = x + self.layer_scales[2 * block + 1](mlp(self.layer_norms[2 * block + 1](x)))
        return x, samplings


def attention(config: DATConfig, index: int, letter: str, image_size: tuple[int, int] | None) -> nn.Module:
    """Return the attention layer that a letter stands for in stage `index`."""
    stage: StageConfig = config.stages[index]
    map_size = None if image_size is None else config.map_size(index, image_size)
    if letter == "D":
        # generation 1 has the query grid step through the table, so that the table belongs to the map at hand
        tied = map_size if config.generation == 1 else None
        table_size = tied or config.map_size(index, (config.img_size, config.img_size))
        return DeformableAttention(stage, generation=config.generation, map_size=map_size, table_size=table_size)
    if letter == "N":
        return NeighborhoodAttention(stage.dim, stage.heads, kernel=stage.neighborhood, map_size=map_size)
    if map_size is None:
        raise SizeError("window attention needs a fixed input size")
    return WindowAttention(stage.dim, stage.heads, window=stage.window, map_size=map_size, shifted=letter == "S")


class DAT(nn.Module):
    """The whole network.

    Args:
        config: what to build; for an input size other than the tables' own, that of `DATConfig.at_size`.
        image_size: height and width of the input, or None for any (`DATConfig.can_be_dynamic`).

    Raises:
        SizeError: the configuration cannot take this size.
    """

    def __init__(self, config: DATConfig, image_size: tuple[int, int] | None) -> None:
        super().__init__()
        if image_size is not None:
            config.check_size(image_size)
        elif not config.can_be_dynamic:
            raise SizeError("only generation 2 without windows and fixed biases takes inputs of any size")
        self.config = config
        self.image_size = image_size
        dims = [stage.dim for stage in config.stages]
        convolutional = config.use_conv_patches
        self.patch_proj = patch_embedding(config.dim_stem, config.patch_size, convolutional=convolutional)
        self.stages = nn.ModuleList(
            Stage(config, index, dim_in=config.dim_stem if index == 0 else dims[index], image_size=image_size)
            for index in range(STAGES)
        )
        self.down_projs = nn.ModuleList(
            down_projection(dims[index], dims[index + 1], convolutional=convolutional) for index in range(STAGES - 1)
        )
        self.cls_norm = ChannelNorm(dims[-1])
        self.cls_head = nn.Linear(dims[-1], config.num_classes)

    @property
    def deformable_layers(self) -> tuple[str, ...]:
        """Names of the D layers in the order in which they run, such as `stages.2.attns.1`."""
        return tuple(name for name, module in self.named_modules() if isinstance(module, DeformableAttention))

    def sample_with(self, sampling: BilinearSampling) -> None:
        """Have every D layer interpolate in this form; a new network's is `models.sampling.GRID`."""
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.sampling = sampling

    def forward(self, image: Tensor, *, with_attention: bool = False) -> DATOutput:
        """Run normalised RGB, float32 (batch, 3, height, width); `with_attention` keeps that of every D layer."""
        x = self.patch_proj(image.permute(0, 2, 3, 1))
        features, samplings = [], []
        for index, stage in enumerate(self.stages):
            x, stage_samplings = stage(x, with_attention=with_attention)
            features.append(x.permute(0, 3, 1, 2))
            samplings.extend(stage_samplings)
            if index < STAGES - 1:
                x = self.down_projs[index](x)
        embedding = cast(Tensor, self.cls_norm(x)).mean((1, 2))
        return DATOutput(self.cls_head(embedding), embedding, tuple(features), tuple(samplings))
