"""The fast resize: how far its pixels are from the published ones, and for which files they are the same."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from service.images import bicubic
from service.images.limits import DecodeLimits, UnusableImage
from service.images.preprocessing import (
    ImageTimings,
    Preprocessing,
    decode,
    decode_into,
    resize_and_crop,
    resize_and_crop_with_pillow,
)

EXACT = Preprocessing(resize=(256, 256), crop=(224, 224))
FAST = replace(EXACT, fast=True)
PHOTOS = [Image.fromarray(pixels) for pixels in load_sample_images().images]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8))


def jpeg_of(image: Image.Image, size: tuple[int, int], **options: object) -> bytes:
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def pixels_of(data: bytes, preprocessing: Preprocessing) -> tuple[NDArray[np.int16], ImageTimings]:
    pixels = np.zeros((*preprocessing.crop, 3), np.uint8)
    timings = decode_into(data, pixels, preprocessing)
    return pixels.astype(np.int16), timings


def deviation(data: bytes, *, exif_orientation: bool = False) -> NDArray[np.int16]:
    """By how many levels the fast pixels are off; the size that is told is the file's either way."""
    exact, told = pixels_of(data, replace(EXACT, exif_orientation=exif_orientation))
    fast, also_told = pixels_of(data, replace(FAST, exif_orientation=exif_orientation))
    assert (told.height, told.width) == (also_told.height, also_told.width)
    return np.abs(fast - exact)


@pytest.mark.parametrize("photo", range(len(PHOTOS)))
@pytest.mark.parametrize(
    "size", [(768, 768), (1075, 769), (1280, 854), (854, 1280), (1801, 1601), (3300, 3080)], ids=str
)
def test_photos_are_off_by_few_levels(photo: int, size: tuple[int, int]) -> None:
    off = deviation(jpeg_of(PHOTOS[photo], size))
    assert 0 < off.max() <= 16
    assert off.mean() < 1.5
    assert (off > 2).mean() < 0.2


def test_noise_which_has_nothing_to_keep_is_off_by_more() -> None:
    off = deviation(jpeg_of(NOISE, (1075, 769)))
    assert off.max() <= 30
    assert off.mean() < 5


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_grey_and_progressive_files_are_decoded_at_a_fraction_too(options: dict[str, object]) -> None:
    for photo in (PHOTOS[0], PHOTOS[0].convert("L")):
        assert 0 < deviation(jpeg_of(photo, (1280, 854), **options)).max() <= 16


@pytest.mark.parametrize(
    ("form", "size", "turn"),
    [
        ("JPEG", (640, 427), 1),
        ("JPEG", (1600, 767), 1),
        ("JPEG", (767, 1600), 1),
        ("JPEG", (1280, 854), 6),
        ("PNG", (1280, 854), 1),
    ],
)
def test_small_files_other_forms_and_turned_ones_are_exact(form: str, size: tuple[int, int], turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    PHOTOS[0].resize(size).save(file, form, exif=exif)
    assert not deviation(file.getvalue(), exif_orientation=True).any()


def test_turning_is_left_out_where_it_is_not_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert deviation(jpeg_of(PHOTOS[0], (1280, 854), exif=exif)).any()


@pytest.mark.parametrize("filled", [(300.0, 400.0), (299.5, 399.875), (299.125, 400.0)])
def test_part_of_an_image_is_resized_as_pillow_does_it(filled: tuple[float, float]) -> None:
    image = NOISE.crop((0, 0, 400, 300))
    box = (0, 0, filled[1], filled[0])
    whole = image.resize((256, 256), Image.Resampling.BICUBIC, box=box)
    expected = np.asarray(ImageOps.crop(whole, 16))
    np.testing.assert_array_equal(resize_and_crop_with_pillow(image, EXACT, filled=filled), expected)
    np.testing.assert_array_equal(resize_and_crop(image, EXACT, filled=filled), expected)


def test_part_of_an_image_is_resized_by_the_library_where_there_is_one() -> None:
    if bicubic.load() is not None:
        pytest.skip("the library was not built")
    size = (256, 256)
    assert bicubic.resized(NOISE.crop((0, 0, 400, 300)), size, (0, 0), size, filled=(299.5, 399.5)) is not None


def test_picture_that_is_shown_has_the_files_own_size() -> None:
    assert decode(jpeg_of(PHOTOS[0], (1280, 854)), FAST).size == (1280, 854)


def test_limits_are_of_the_file_and_not_of_what_is_left_of_it() -> None:
    data = jpeg_of(PHOTOS[0], (1280, 854))
    few = replace(FAST, limits=DecodeLimits(max_pixels=1280 * 854 - 1))
    with pytest.raises(UnusableImage) as refused:
        pixels_of(data, few)
    assert refused.value.fault.code == "too_many_pixels"
    with pytest.raises(UnusableImage) as cut:
        pixels_of(data[: len(data) // 2], FAST)
    assert cut.value.fault.code == "undecodable"
