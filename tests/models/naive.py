"""The attention layers written out as slowly and plainly as the definition allows, to check the real ones against.

Everything is float64 and per element: windows are looked up query by query, sampling follows its four neighbours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.config import StageConfig

Weights = dict[str, Tensor]


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    out = x @ weights[f"{name}.weight"].flatten(1).T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """(channels, H, W) at pixel coordinates, zero outside."""
    height, width = image.shape[1:]
    out = torch.zeros(image.shape[0], dtype=image.dtype)
    top, left = math.floor(y), math.floor(x)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                out += image[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return out


def at(image: Tensor, y: float, x: float) -> Tensor:
    """(channels, H, W) at coordinates of which -1 and 1 are the centres of the outermost pixels."""
    return bilinear(image, (y + 1) / 2 * (image.shape[1] - 1), (x + 1) / 2 * (image.shape[2] - 1))


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(tokens, dim) to (heads, tokens, head_dim)."""
    return x.reshape(x.shape[0], heads, -1).transpose(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float) -> Tensor:
    """(heads, queries, d), (heads, keys, d) twice to (queries, heads * d)."""
    scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5 + bias
    return (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)


def window_attention(x: Tensor, weights: Weights, *, heads: int, window: int, shifted: bool) -> Tensor:
    """One image, (H, W, dim). Padding, shift and mask are decided per pair of tokens."""
    height, width, dim = x.shape
    rows, columns = math.ceil(height / window) * window, math.ceil(width / window) * window
    shift = math.ceil(window / 2) if shifted else 0
    padded = torch.zeros(rows, columns, dim, dtype=x.dtype)
    padded[:height, :width] = x
    rolled = torch.roll(padded, (-shift, -shift), (0, 1))
    table = weights["relative_position_bias_table"]

    def region(place: int, length: int) -> int:
        return (place >= length - window) + (place >= length - shift) if shifted else 0

    out = torch.zeros_like(rolled)
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            places = [(top + dy, left + dx) for dy in range(window) for dx in range(window)]
            tokens = torch.stack([rolled[place] for place in places])
            query, key, value = (heads_of(part, heads) for part in linear(weights, "proj_qkv", tokens).chunk(3, -1))
            bias = torch.zeros(heads, len(places), len(places), dtype=x.dtype)
            for i, (qy, qx) in enumerate(places):
                for j, (ky, kx) in enumerate(places):
                    bias[:, i, j] = table[(qy - ky + window - 1) * (2 * window - 1) + qx - kx + window - 1]
                    same = region(qy, rows) == region(ky, rows) and region(qx, columns) == region(kx, columns)
                    bias[:, i, j] -= 0 if same else 100
            result = linear(weights, "proj_out", attend(query, key, value, bias))
            for place, vector in zip(places, result, strict=True):
                out[place] = vector
    return torch.roll(out, (shift, shift), (0, 1))[:height, :width]


def neighborhood_attention(x: Tensor, weights: Weights, *, heads: int, kernel: int) -> Tensor:
    """One image, (H, W, dim)."""
    height, width, dim = x.shape
    rows, columns = max(height, kernel), max(width, kernel)
    padded = torch.zeros(rows, columns, dim, dtype=x.dtype)
    padded[:height, :width] = x
    query, key, value = linear(weights, "qkv", padded).chunk(3, -1)
    out = torch.zeros_like(padded)
    for i in range(rows):
        for j in range(columns):
            top = min(max(i - kernel // 2, 0), rows - kernel)
            left = min(max(j - kernel // 2, 0), columns - kernel)
            seen = [(y, x_) for y in range(top, top + kernel) for x_ in range(left, left + kernel)]
            keys = heads_of(torch.stack([key[place] for place in seen]), heads)
            values = heads_of(torch.stack([value[place] for place in seen]), heads)
            bias = torch.stack([weights["rpb"][:, y - i + kernel - 1, x_ - j + kernel - 1] for y, x_ in seen], -1)
            out[i, j] = attend(heads_of(query[i, j][None], heads), keys, values, bias[:, None])[0]
    return linear(weights, "proj", out)[:height, :width]


def deformable_attention(
    x: Tensor, weights: Weights, stage: StageConfig, generation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One image, (H, W, dim). Returns the output, the positions (groups, Hk, Wk, 2), and how much each query heeds
    each key (heads, queries, keys)."""
    height, width, dim = x.shape
    query = linear(weights, "proj_q", x)
    position = _positions(query, weights, stage, generation)
    groups, key_height, key_width = position.shape[:3]
    places = position.reshape(groups, -1, 2)
    if stage.no_offsets and generation == 2:
        blocks = x[: key_height * stage.stride, : key_width * stage.stride]
        blocks = blocks.reshape(key_height, stage.stride, key_width, stage.stride, dim)
        sampled = blocks.mean((1, 3)).reshape(-1, dim)
    else:
        maps = x.permute(2, 0, 1).chunk(groups)
        sampled = torch.cat(
            [
                torch.stack([at(image, *place) for place in group])
                for image, group in zip(maps, places.tolist(), strict=True)
            ],
            -1,
        )
    key, value = (heads_of(linear(weights, name, sampled), stage.heads) for name in ("proj_k", "proj_v"))
    bias = _position_bias(places, weights, stage, generation, (height, width))
    queries = heads_of(query.reshape(-1, dim), stage.heads)
    out = attend(queries, key, value, bias).reshape(height, width, dim)
    # attending to values that are all different says how much each is heeded
    each = torch.eye(key.shape[1], dtype=x.dtype).expand(stage.heads, -1, -1)
    heeded = attend(queries, key, each, bias).reshape(height * width, stage.heads, -1).transpose(0, 1)
    if stage.use_pe and stage.dwc_pe and not (stage.no_offsets and generation == 2):
        out = out + depthwise(query, weights, "rpe_table", stride=1, padding=1)
    return linear(weights, "proj_out", out), position, heeded


def depthwise(x: Tensor, weights: Weights, name: str, *, stride: int, padding: int) -> Tensor:
    """(H, W, channels) to the convolved map."""
    weight, bias = weights[f"{name}.weight"][:, 0], weights[f"{name}.bias"]
    kernel = weight.shape[-1]
    height, width, channels = x.shape
    padded = torch.zeros(height + 2 * padding, width + 2 * padding, channels, dtype=x.dtype)
    padded[padding : padding + height, padding : padding + width] = x
    rows = (height + 2 * padding - kernel) // stride + 1
    columns = (width + 2 * padding - kernel) // stride + 1
    out = torch.zeros(rows, columns, channels, dtype=x.dtype)
    for i in range(rows):
        for j in range(columns):
            patch = padded[i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            out[i, j] = (patch * weight.permute(1, 2, 0)).sum((0, 1)) + bias
    return out


def _positions(query: Tensor, weights: Weights, stage: StageConfig, generation: int) -> Tensor:
    height, width = query.shape[:2]
    factor = stage.offset_range_factor
    padding = 0 if generation == 2 and stage.offset_kernel == stage.stride else stage.offset_kernel // 2
    positions = []
    for group in query.chunk(stage.groups, -1):
        if stage.no_offsets and generation == 2:
            offset = torch.zeros(height // stage.stride, width // stage.stride, 2, dtype=query.dtype)
        else:
            hidden = depthwise(group, weights, "conv_offset.0", stride=stage.stride, padding=padding)
            centred = hidden - hidden.mean(-1, keepdim=True)
            hidden = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            hidden = hidden * weights["conv_offset.1.norm.weight"] + weights["conv_offset.1.norm.bias"]
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            offset = linear(weights, "conv_offset.3", hidden) * (0 if stage.no_offsets else 1)
        rows, columns = offset.shape[:2]
        place = torch.zeros_like(offset)
        for i in range(rows):
            for j in range(columns):
                for axis, (index, length) in enumerate(((i, rows), (j, columns))):
                    span = length if generation == 1 else length - 1
                    moved = offset[i, j, axis]
                    if factor > 0 or (factor == 0 and generation == 2):
                        moved = moved.tanh() * factor / span
                    value = 2 * (index + 0.5) / span - 1 + moved
                    if factor < 0:
                        value = value.tanh() if generation == 1 else value.clamp(-1, 1)
                    place[i, j, axis] = value
        positions.append(place)
    return torch.stack(positions)


def _position_bias(
    places: Tensor, weights: Weights, stage: StageConfig, generation: int, size: tuple[int, int]
) -> Tensor | float:
    if not stage.use_pe or stage.dwc_pe or (stage.no_offsets and generation == 2):
        return 0.0
    if stage.fixed_pe:
        return weights["rpe_table"]
    height, width = size

    def coordinate(index: int, length: int) -> float:
        return 2 * (index + 0.5) / length - 1 if generation == 1 else 2 * index / (length - 1) - 1

    per_group = stage.heads // stage.groups
    bias = torch.zeros(stage.heads, height * width, places.shape[1], dtype=places.dtype)
    for group, points in enumerate(places.tolist()):
        chosen = slice(group * per_group, (group + 1) * per_group)
        for m in range(height * width):
            y, x = coordinate(m // width, height), coordinate(m % width, width)
            for n, (py, px) in enumerate(points):
                if stage.log_cpb:
                    scaled = [4 * (y - py), 4 * (x - px)]
                    logs = [math.copysign(math.log2(abs(d) + 1) / 3, d) for d in scaled]
                    hidden = linear(weights, "rpe_table.0", torch.tensor(logs, dtype=places.dtype)).clamp(min=0)
                    bias[chosen, m, n] = linear(weights, "rpe_table.2", hidden)
                else:
                    bias[chosen, m, n] = at(weights["rpe_table"][chosen], (y - py) / 2, (x - px) / 2)
    return bias
