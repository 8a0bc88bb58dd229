"""The stem against `models.layers.patch_embedding` in float64, whose weights are those of normalised images."""

from __future__ import annotations

import pytest
import torch

from kernels.stem import patch_embedding
from models.layers import patch_embedding as patch_embedding_of_the_models
from tests.kernels.bounds import assert_close, halves

DEVIATION = torch.tensor([58.4, 57.1, 57.4], dtype=torch.float64)
BEYOND = torch.tensor([-4.32, -11.72, -24.47]).half()
"""The means of ImageNet less 128."""


@pytest.mark.parametrize(
    ("height", "width", "stem", "convolutional"),
    [
        (32, 48, 64, True),
        (32, 32, 96, True),
        (9, 7, 128, True),
        (32, 32, 96, False),
        (12, 20, 128, False),
        (64, 32, 16, True),
    ],
)
def test_pixels_are_embedded_as_in_the_models(
    generator: torch.Generator, height: int, width: int, stem: int, convolutional: bool
) -> None:
    module = patch_embedding_of_the_models(stem, 4, convolutional=convolutional).double()
    conv, norm = module[0], module[1].norm
    channels, _, kernel, _ = conv.weight.shape
    stride, padding = conv.stride[0], conv.padding[0]
    weight = (torch.randn(kernel, kernel, 3, channels, generator=generator) / 300).half()
    bias, gain, shift = (halves(generator, channels) for _ in range(3))
    conv.weight.data = weight.double().permute(3, 2, 0, 1) * DEVIATION[:, None, None]
    conv.bias.data = bias.double() + torch.einsum("yxio,i->o", weight.double(), BEYOND.double())
    norm.weight.data, norm.bias.data = gain.double(), shift.double()
    image = torch.randint(0, 256, (2, height, width, 3), generator=generator, dtype=torch.uint8)
    with torch.inference_mode():
        expected = module[: 3 if convolutional else 2]((image.double() - 128 - BEYOND.double()) / DEVIATION)
    rows, columns = expected.shape[1:3]
    out = torch.full(expected.shape, torch.nan).half()
    patch_embedding[(-(-rows * columns // 64), 2)](
        out,
        image,
        BEYOND,
        weight,
        bias,
        gain,
        shift,
        norm.eps,
        height=height,
        width=width,
        colours=3,
        channels=channels,
        kernel=kernel,
        stride=stride,
        padding=padding,
        has_gelu=convolutional,
        block_cells=64,
        block_taps=1 << (3 * kernel**2 - 1).bit_length(),
        block_channels=max(16, 1 << (channels - 1).bit_length()),
    )
    assert_close(out, expected)
