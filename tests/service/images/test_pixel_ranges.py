"""Whatever range and order a file's numbers have, they come out as the light that they stand for, or are refused.

The files are written here number by number, and brought to RGB by a converter of this module's own, which knows
nothing of Pillow's modes.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from service.images.limits import UnusableImage
from service.images.preprocessing import Preprocessing, decode, prepare_pillow
from tests.service.hostile_images import tiff
from tests.service.pictures import encoded

prepare_pillow()

WIDTH, HEIGHT = 16, 6
ANY = Preprocessing(resize=(8, 8), crop=(8, 8))
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8


def rgb_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode(data, ANY).convert("RGB"))


def numbers(channels: int, bits: int, seed: int = 0) -> NDArray[np.int64]:
    """Numbers over the whole range of so many bits, the lowest and the highest among them."""
    values = np.random.default_rng(seed).integers(0, 2**bits, (HEIGHT, WIDTH, channels))
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return values


def highest_byte(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Light from 0 to 255: the highest 8 bits, or what fewer bits are of the whole."""
    return values >> (bits - 8) if bits >= 8 else values * 255 // (2**bits - 1)


def packed(values: NDArray[np.int64], bits: int, order: str) -> bytes:
    """Each row's numbers, most significant bit first, or in the bytes' own order from 16 bits on."""
    rows = values.reshape(HEIGHT, -1)
    if bits >= 16:
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    ones = ((rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8).reshape(HEIGHT, -1)
    return np.packbits(ones, axis=1).tobytes()


def light_of(
    values: NDArray[np.int64], photometric: int, form: int, bits: int, extra: tuple[int, ...]
) -> NDArray[np.int64]:
    """The RGB that a file's unsigned or signed numbers stand for; the numbers are given as they are stored."""
    if form == SIGNED:
        values = (values + 2 ** (bits - 1)) % 2**bits
    light = highest_byte(values, bits)
    if photometric == WHITE_IS_ZERO:
        light = 255 - light
    if photometric == RGB:
        return _straight(light, 3, extra)
    if photometric == CMYK:
        inks = light[..., :4]
        return np.asarray(Image.fromarray(inks.astype(np.uint8), "CMYK").convert("RGB")).astype(int)
    return np.repeat(_straight(light, 1, extra), 3, axis=-1)


def _straight(light: NDArray[np.int64], channels: int, extra: tuple[int, ...]) -> NDArray[np.int64]:
    """Without the other channels; colours that were multiplied with their alpha (extra 1) are divided by it again."""
    colours = light[..., :channels]
    if not extra or extra[0] != 1:
        return colours
    alpha = light[..., channels : channels + 1]
    return 255 * colours // np.maximum(alpha, 1)


def short(*values: int, order: str) -> tuple[int, int, bytes]:
    return 3, len(values), struct.pack(f"{order}{len(values)}H", *values)


def tiff_of(
    values: NDArray[np.int64], *, order: str, photometric: int, form: int, fill_order: int, bits: int,
    extra: tuple[int, ...], compression: int,
) -> bytes:  # fmt: skip
    data = packed(values, bits, order)
    data = zlib.compress(data) if compression == 8 else data
    if fill_order == 2:
        data = np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little").tobytes()
    channels = values.shape[-1]
    tags = {
        258: short(*[bits] * channels, order=order), 259: short(compression, order=order),
        262: short(photometric, order=order), 266: short(fill_order, order=order),
        273: (4, 1, struct.pack(order + "I", 8)), 277: short(channels, order=order),
        278: short(HEIGHT, order=order), 279: (4, 1, struct.pack(order + "I", len(data))),
    }  # fmt: skip
    if extra:
        tags[338] = short(*extra, order=order)
    if form != UNSIGNED:
        tags[339] = short(*[form] * channels, order=order)
    if photometric == YCBCR:
        tags[530] = short(1, 1, order=order)
    if photometric == PALETTE:
        tags[320] = short(*_palette(bits).T.reshape(-1) * 257, order=order)
    return tiff(WIDTH, HEIGHT, tags, order=order, data=data)


def _palette(bits: int) -> NDArray[np.int64]:
    return np.random.default_rng(7).integers(0, 256, (2**bits, 3))


TIFF_KINDS = [
    ("<" if order == b"II" else ">", photometric, form[0], fill_order, bits, extra)
    for order, photometric, form, fill_order, bits, extra in TiffImagePlugin.OPEN_INFO
    if (photometric, bits) != (YCBCR, (8,))  # one channel of brightness and colour differences is no TIFF
]
"""Every kind of TIFF that Pillow has a mode for."""
MORE_TIFF_KINDS = [
    (order, photometric, form, 1, (bits,), ())
    for order in "<>"
    for photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
    for form in (UNSIGNED, SIGNED, FLOAT)
    for bits in (8, 12, 16, 32, 64)
] + [(order, RGB, form, 1, (bits,) * 3, ()) for order in "<>" for form in (SIGNED, FLOAT) for bits in (8, 16, 32)]
"""And what scanners, cameras and microscopes write beside."""


@pytest.mark.parametrize("compression", [1, 8], ids=["plain", "deflate"])
@pytest.mark.parametrize("kind", sorted({*TIFF_KINDS, *MORE_TIFF_KINDS}), ids=str)
def test_tiff_is_taken_by_its_true_range_or_refused_by_name(
    kind: tuple[str, int, int, int, tuple[int, ...], tuple[int, ...]], compression: int
) -> None:
    order, photometric, form, fill_order, depths, extra = kind
    bits = depths[0]
    values = numbers(len(depths), bits if bits < 64 else 62)
    if extra[:1] == (1,):  # colours are multiplied with their alpha, and so no larger
        channels = 1 if photometric == BLACK_IS_ZERO else 3
        values[..., :channels] = np.minimum(values[..., :channels], values[..., channels : channels + 1])
    data = tiff_of(
        values, order=order, photometric=photometric, form=form, fill_order=fill_order, bits=bits, extra=extra,
        compression=compression,
    )  # fmt: skip
    try:
        pixels = rgb_of(data)
    except UnusableImage as error:
        assert error.fault.code == "unsupported_encoding"  # noqa: PT017
        assert f"{len(depths)} x {bits} bits" in str(error)  # noqa: PT017
        is_odd = bits in (12, 32, 64) or form != UNSIGNED
        assert is_odd or photometric in (LAB, YCBCR) or kind in MORE_TIFF_KINDS
        return
    if photometric == PALETTE:
        np.testing.assert_array_equal(pixels, _palette(bits)[values[..., 0]])
    elif photometric == YCBCR and len(depths) == 3:
        as_pillow = Image.fromarray(values.astype(np.uint8), "YCbCr").convert("RGB")
        assert np.abs(pixels.astype(int) - np.asarray(as_pillow)).max() <= 2
    else:
        light = light_of(values, photometric, form, bits, extra)
        tolerance = 1 if extra[:1] == (1,) else 0  # how the division is rounded
        assert np.abs(pixels - light).max() <= tolerance


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("form", [UNSIGNED, SIGNED])
def test_grey_tiff_of_16_bits_is_taken_in_every_form(order: str, photometric: int, form: int) -> None:
    values = numbers(1, 16)
    data = tiff_of(
        values, order=order, photometric=photometric, form=form, fill_order=1, bits=16, extra=(), compression=1
    )
    light = light_of(values, photometric, form, 16, ())
    np.testing.assert_array_equal(rgb_of(data), light)


def png_of(values: NDArray[np.int64], bits: int, color: int) -> bytes:
    rows = packed(values, bits, ">")
    row_bytes = len(rows) // HEIGHT
    filtered = b"".join(b"\0" + rows[i : i + row_bytes] for i in range(0, len(rows), row_bytes))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color, 0, 0, 0))]
    if color == 3:
        parts.append((b"PLTE", _palette(bits).astype(np.uint8).tobytes()))
    parts += [(b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


PNG_KINDS = [(bits, color) for color, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items() for bits in depths]  # fmt: skip # noqa: E501


@pytest.mark.parametrize(("bits", "color"), PNG_KINDS)
def test_png_is_taken_by_its_true_range(bits: int, color: int) -> None:
    values = numbers({0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color], bits)
    pixels = rgb_of(png_of(values, bits, color))
    if color == 3:
        expected = _palette(bits)[values[..., 0]]
    else:
        light = highest_byte(values, bits)
        expected = light[..., :3] if color in (2, 6) else np.repeat(light[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(pixels, expected)


MODES = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "P", "RGB", "LA", "RGBA", "I;16"),
    "WEBP": ("L", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"),
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_every_mode_that_pillow_writes_comes_back_as_a_picture_or_is_refused_by_name(form: str, mode: str) -> None:
    grey = Image.fromarray(numbers(1, 8)[..., 0].astype(np.uint8))
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * np.uint16(257)).convert(mode)
    elif mode in ("P", "PA"):
        image = grey.convert("P").convert(mode)
    elif mode in ("1", "F"):
        image = grey.convert(mode)
    else:
        image = grey.convert("RGB").convert(mode)
    try:
        pixels = rgb_of(encoded(image, form, **({"lossless": True} if form == "WEBP" else {}))).astype(int)
    except UnusableImage as error:
        assert error.fault.code == "unsupported_encoding"  # noqa: PT017
        assert (form, mode) in (("TIFF", "I"), ("TIFF", "F"), ("TIFF", "LAB"))
        return
    written = np.asarray(grey.convert("1").convert("L") if mode == "1" else grey).astype(int)
    assert np.abs(pixels.mean(axis=-1) - written).max() <= (60 if form == "JPEG" else 3)


def test_transparency_is_dropped_and_the_colours_below_it_stay() -> None:
    image = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    image[2:4, 2:9] = 255, 0, 0, 255
    image[:2] = 9, 9, 9, 0
    pixels = rgb_of(encoded(Image.fromarray(image), "PNG"))
    np.testing.assert_array_equal(pixels, image[..., :3])


def test_float_picture_is_refused_in_a_sentence_that_names_it() -> None:
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(file, "TIFF")
    with pytest.raises(UnusableImage, match=r"32 bits.*floating-point") as caught:
        rgb_of(file.getvalue())
    assert caught.value.fault.code == "unsupported_encoding"
