"""A network in the form in which it is exported: the same function, with less to compute.

What a layer multiplies by or adds that is known beforehand moves into weights beside it: the scale of attention
scores into the keys, the factors of residual branches into the projections that end them, the skips around depthwise
convolutions into their kernels. Keys are hidden from queries by a finite bias, `HIDDEN`. Every step is exact but for
rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Final

import torch
from torch import nn

from export.fused_attention import fuse_attention
from export.gpu_layers import attend_by_operator, gather_windows, multiply_patches
from export.steps import Step
from models.dat import DAT, Stage
from models.deformable_attention import DeformableAttention
from models.layers import MLP, ConvMLP, LayerScale, ResidualDepthwiseConv
from models.neighborhood_attention import NeighborhoodAttention
from models.sampling import BilinearSampling
from models.window_attention import WindowAttention

HIDDEN: Final = -50.0
"""What the scores of keys that a query must not see get added.

A softmax weights such a key by e^-50, 2e-22, which no float32 sum of values shows, unless its score lies 33 above those
that the query sees. By -100 or -inf the weights were denormal numbers, which ONNX Runtime's exponential gives on
processors with AVX-512 instead of zeros, and in which each operation takes some of them over a hundred cycles.
"""


def inference_form(
    model: DAT, sampling: BilinearSampling, *, tuned_for_cpu: bool = False, steps: Collection[Step] = ()
) -> DAT:
    """Return a copy that computes what `model` does, and samples as `sampling` has it.

    `tuned_for_cpu` takes what ONNX Runtime's CPU provider has the faster code for: its own attention operator, and
    blocked convolutions for the products of the MLPs. Such a copy can be exported, and not be run by torch.
    Of `steps` those are taken that change layers.
    """
    model = copy.deepcopy(model).requires_grad_(False)
    model.sample_with(sampling)
    for module in list(model.modules()):
        match module:
            case ResidualDepthwiseConv():
                module.fold_skip()
            case DeformableAttention():
                scale_rows(module.proj_k, module.scale)
                module.scale = 1.0
            case WindowAttention():
                scale_rows(module.proj_qkv, module.scale, module.proj_qkv.in_features)
                module.scale = 1.0
                if module.mask is not None:
                    module.mask.clamp_(min=HIDDEN)
            case NeighborhoodAttention():
                module.hide_by(HIDDEN)
                scale_rows(module.qkv, module.scale, module.qkv.in_features)
                module.scale = 1.0
            case MLP() | ConvMLP():
                module.channels_first = tuned_for_cpu
            case Stage():
                fold_layer_scales(module)
    if tuned_for_cpu:
        fuse_attention(model)
    if Step.BIASES in steps:
        _move_biases(model)
    if Step.ATTENTION in steps:
        attend_by_operator(model)
    elif Step.GATHERS in steps:  # attention by the operator gathers its windows already
        gather_windows(model)
    if Step.PATCHES in steps:
        multiply_patches(model)
    return model


def _move_biases(model: DAT) -> None:
    """Drop the biases of keys, and add those of values to the output projections, in place.

    A bias of the keys adds the same to all scores of a query, which the softmax does not see; values are weighted by
    numbers that sum to 1, so that their bias comes out as it went in.
    """
    for layer in model.modules():
        match layer:
            case DeformableAttention():
                move_sampled_biases(layer)
            case WindowAttention():
                layer.query_bias = _take_query_bias(layer.proj_qkv, layer.proj_out)
            case NeighborhoodAttention():
                layer.query_bias = _take_query_bias(layer.qkv, layer.proj)


def move_sampled_biases(layer: DeformableAttention) -> None:
    """Do what `_move_biases` does in one layer whose keys and values are sampled."""
    assert layer.proj_v.bias is not None
    _add_behind(layer.proj_out, layer.proj_v.bias)
    for projection in (layer.proj_k, layer.proj_v):
        projection.register_parameter("bias", None)


def _take_query_bias(projection: nn.Linear, last: nn.Linear) -> torch.Tensor:
    """Take the bias off a projection to queries, keys and values, and return that of the queries."""
    query, _, value = projection.bias.chunk(3)
    _add_behind(last, value)
    projection.register_parameter("bias", None)
    return query.clone()


def _add_behind(last: nn.Linear | nn.Conv2d, before: torch.Tensor) -> None:
    """Have a projection add what a bias before it would have come to."""
    assert last.bias is not None
    last.bias += last.weight.flatten(1) @ before


def scale_rows(layer: nn.Linear | nn.Conv2d, factor: float | torch.Tensor, rows: int | None = None) -> None:
    """Multiply the first `rows` outputs of a layer, or all, by a factor or one each."""
    layer.weight[:rows] *= factor if isinstance(factor, float) else factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    if layer.bias is not None:
        layer.bias[:rows] *= factor


def fold_layer_scales(stage: Stage) -> None:
    """Move the factors of a stage's residual branches into the projections that end them, in place."""
    for place, scale in enumerate(stage.layer_scales):
        if isinstance(scale, LayerScale):
            branch = stage.attns[place // 2] if place % 2 == 0 else stage.mlps[place // 2]
            scale_rows(_last_projection(branch), scale.weight)
            stage.layer_scales[place] = nn.Identity()


def _last_projection(branch: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the layer whose outputs a residual branch ends with."""
    match branch:
        case DeformableAttention() | WindowAttention():
            last: nn.Module = branch.proj_out
        case NeighborhoodAttention():
            last = branch.proj
        case ConvMLP():
            last = branch.linear2[0]
        case MLP():
            last = branch.chunk["linear2"]
        case _:
            raise TypeError(f"{type(branch).__name__} is no residual branch")
    assert isinstance(last, nn.Linear | nn.Conv2d)
    return last
