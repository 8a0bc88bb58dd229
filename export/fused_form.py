"""A DAT in the form that the operators of the domain `dat` are for: tokens from the stem to the pooling.

Between branches a map is a `Residual`, whose sum is taken where a norm wants it, in the norm's own operator. What has
no operator stays in standard ones: the second convolution of a stem, the halvings between stages, norms behind these
and behind perception units, the sum at the end of each stage but the last, and what `export.fused_branches` says of
single branches.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import cast

from torch import Tensor, nn

from export.fused_branches import BRANCHES
from export.fused_layers import (
    FusedStem,
    OperatorLayer,
    PerceivedNorm,
    PlainNorm,
    Residual,
    ResidualNorm,
    ResidualPerceivedNorm,
)
from export.gpu_layers import multiply_patches
from export.graph import Normalisation
from export.inference_form import fold_layer_scales
from models.config import STAGES
from models.dat import DAT, Stage
from models.layers import ChannelNorm, ResidualDepthwiseConv


class FusedBlock(nn.Module):
    """A block: perception unit where there is one, attention, MLP."""

    def __init__(self, stage: Stage, place: int) -> None:
        super().__init__()
        unit, follows_a_branch = stage.local_perception_units[place], place > 0
        first, second = (cast(ChannelNorm, stage.layer_norms[2 * place + number]) for number in range(2))
        if isinstance(unit, ResidualDepthwiseConv):
            perceived = ResidualPerceivedNorm if follows_a_branch else PerceivedNorm
            self.first_norm: nn.Module = perceived(unit, first)
        else:
            self.first_norm = ResidualNorm(first) if follows_a_branch else PlainNorm(first)
        self.second_norm = ResidualNorm(second)
        self.attention, self.mlp = (BRANCHES[type(each)](each) for each in (stage.attns[place], stage.mlps[place]))

    def forward(self, residual: Residual) -> Residual:
        """Return the sum with this block's branches, the last not added yet."""
        x, normed = self.first_norm(residual)
        x, normed = self.second_norm(Residual(x, self.attention(normed), self.attention.bias))
        return Residual(x, self.mlp(normed), self.mlp.bias)


class FusedStage(nn.Module):
    """A stage; its layer scales have been folded."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.proj = stage.proj
        self.blocks = nn.ModuleList(FusedBlock(stage, place) for place in range(len(stage.attns)))

    def forward(self, x: Tensor) -> Residual:
        """(batch, height, width, dim_in) to the sum that the stage ends with."""
        residual = Residual(self.proj(x))
        for block in self.blocks:
            residual = block(residual)
        return residual


class FusedNetwork(nn.Module):
    """A network with a fixed input size that takes images as they are sent: uint8 (batch, height, width, 3), RGB."""

    def __init__(self, model: DAT, normalisation: Normalisation) -> None:
        super().__init__()
        model = copy.deepcopy(model).requires_grad_(False)
        stages = [cast(Stage, stage) for stage in model.stages]
        for stage in stages:
            fold_layer_scales(stage)
        multiply_patches(model.down_projs)
        self.stem, self.down_projs = FusedStem(model.patch_proj, normalisation), model.down_projs
        self.stages = nn.ModuleList(map(FusedStage, stages))
        self.cls_norm, self.cls_head = ResidualNorm(model.cls_norm), model.cls_head

    @property
    def operators(self) -> Counter[str]:
        """How many nodes of each operator of the domain a graph of this holds."""
        layers = [module for module in self.modules() if isinstance(module, OperatorLayer)]
        return Counter(operator for layer in layers for operator in layer.operators)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what `export.graph.OUTPUT_NAMES` lists, maps as (batch, channels, height, width)."""
        x = self.stem(image)
        maps = []
        for index, stage in enumerate(self.stages[:-1]):
            x = stage(x).total()
            maps.append(x)
            x = self.down_projs[index](x)
        x, normed = self.cls_norm(self.stages[STAGES - 1](x))
        embedding = normed.mean((1, 2))
        return self.cls_head(embedding), embedding, *(each.permute(0, 3, 1, 2) for each in (*maps, x))
