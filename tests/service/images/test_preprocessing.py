from __future__ import annotations

import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from service.http.answers.schemas import FaultCode
from service.images.formats import FORMATS
from service.images.limits import DecodeLimits, UnusableImage
from service.images.preprocessing import Preprocessing, decode_into, prepare_pillow, resize_and_crop
from tests.service.pictures import bilevel_png, encoded, naive, photo, pixels

prepare_pillow()

PUBLISHED = Preprocessing(resize=(256, 256), crop=(224, 224))
PUBLISHED_384 = Preprocessing(resize=(438, 438), crop=(384, 384))
WHOLE_384 = Preprocessing(resize=(384, 384), crop=(384, 384))
ODD = Preprocessing(resize=(37, 50), crop=(32, 41))
ALL = (PUBLISHED, PUBLISHED_384, WHOLE_384, ODD)


def prepared(data: bytes, preprocessing: Preprocessing = PUBLISHED) -> NDArray[np.uint8]:
    out = np.zeros((*preprocessing.crop, 3), np.uint8)
    decode_into(data, out, preprocessing)
    return out


def _palette(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(pixels()).convert(mode).quantize(16)


def _palette_with_transparency() -> bytes:
    return encoded(_palette(), "PNG", transparency=bytes(range(0, 256, 16)))


def _exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return photo("JPEG", exif=exif.tobytes())


def _animation(form: str) -> bytes:
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=40)


FILES = {
    "jpeg": photo("JPEG", quality=90),
    "jpeg progressive": photo("JPEG", quality=60, progressive=True),
    "jpeg grey": encoded(Image.fromarray(pixels()).convert("L"), "JPEG"),
    "jpeg cmyk": encoded(Image.fromarray(pixels()).convert("CMYK"), "JPEG"),
    "jpeg rotated by exif": _exif_rotated(),
    "mpo, as phones write": _animation("MPO"),
    "png": photo("PNG"),
    "png palette": encoded(_palette(), "PNG"),
    "png palette with transparency": _palette_with_transparency(),
    "png palette with one transparent colour": encoded(_palette(), "PNG", transparency=3),
    "png grey": encoded(Image.fromarray(pixels()).convert("L"), "PNG"),
    "png grey and alpha": encoded(Image.fromarray(pixels(channels=4)).convert("LA"), "PNG"),
    "png alpha": encoded(Image.fromarray(pixels(channels=4)), "PNG"),
    "png 1 bit": encoded(Image.fromarray(pixels()).convert("1"), "PNG"),
    "png 1 x 1": photo("PNG", width=1, height=1),
    "png 1 x 500": photo("PNG", width=1, height=500),
    "webp": photo("WEBP", quality=80),
    "webp lossless with alpha": encoded(Image.fromarray(pixels(channels=4)), "WEBP", lossless=True),
    "webp animated": _animation("WEBP"),
    "bmp": photo("BMP"),
    "gif": photo("GIF"),
    "gif animated": _animation("GIF"),
    "tiff": photo("TIFF"),
    "tiff deflate": photo("TIFF", compression="tiff_adobe_deflate"),
    "tiff of several pages": _animation("TIFF"),
    "tiff cmyk": encoded(Image.fromarray(pixels()).convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("preprocessing", ALL, ids=["256 to 224", "438 to 384", "384", "odd"])
def test_pixels_are_those_of_the_published_steps(name: str, preprocessing: Preprocessing) -> None:
    out = prepared(FILES[name], preprocessing)
    with warnings.catch_warnings(action="ignore"):  # Pillow's advice on palettes whose transparency is dropped
        steps = naive(FILES[name], resize=preprocessing.resize, crop=preprocessing.crop)
    np.testing.assert_array_equal(out, steps)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("preprocessing", ALL, ids=["256 to 224", "438 to 384", "384", "odd"])
def test_pixels_of_real_photos_are_those_of_the_published_steps(name: str, preprocessing: Preprocessing) -> None:
    data = encoded(Image.fromarray(load_sample_image(name)), "JPEG", quality=92)
    steps = naive(data, resize=preprocessing.resize, crop=preprocessing.crop)
    np.testing.assert_array_equal(prepared(data, preprocessing), steps)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    width=st.one_of(st.integers(1, 8), st.integers(1, 700), st.sampled_from([223, 224, 255, 256, 257, 512])),
    height=st.one_of(st.integers(1, 8), st.integers(1, 700), st.sampled_from([223, 224, 255, 256, 257, 512])),
    resize=st.sampled_from([(256, 256), (128, 64), (64, 64), (438, 438), (36, 36), (37, 50)]),
    margins=st.tuples(st.integers(0, 31), st.integers(0, 31)),
    seed=st.integers(0, 2**32 - 1),
)
def test_crop_is_the_centre_of_the_resized_image(
    width: int, height: int, resize: tuple[int, int], margins: tuple[int, int], seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop = (resize[0] - margins[0], resize[1] - margins[1])
    image = Image.fromarray(noise)
    whole = np.asarray(image.resize((resize[1], resize[0]), Image.Resampling.BICUBIC))
    top, left = round(margins[0] / 2.0), round(margins[1] / 2.0)
    out = resize_and_crop(image, Preprocessing(resize=resize, crop=crop, limits=DecodeLimits(max_pixels=10**9)))
    np.testing.assert_array_equal(out, whole[top : top + crop[0], left : left + crop[1]])


@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [
        ("224", (256, 256), (224, 224)),
        ("384", (439, 439), (384, 384)),  # as the exporter has it for a model of that size
        ("33", (38, 38), (33, 33)),
        ("224x224", (224, 224), (224, 224)),
        ("300x512", (300, 512), (300, 512)),
    ],
)
def test_another_size_is_the_published_crop_in_proportion_or_the_whole_image(
    size: str, resize: tuple[int, int], crop: tuple[int, int]
) -> None:
    other = replace(PUBLISHED, exif_orientation=True).at(size)
    assert (other.resize, other.crop, other.exif_orientation) == (resize, crop, True)
    data = photo("JPEG", width=640, height=480)
    np.testing.assert_array_equal(prepared(data, other), naive(data, resize=resize, crop=crop))


def test_a_model_that_sees_the_whole_image_does_so_at_other_sizes() -> None:
    assert WHOLE_384.at("512").resize == (512, 512)


@pytest.mark.parametrize(
    "size", ["", "0", "224x", "x224", "224X224", "-1", "1.5", "224x0", "100000", "2 24", "224x224x3"]
)
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match="no size such as 384 or 480x640"):
        PUBLISHED.at(size)


def test_exif_orientation_is_applied_only_where_the_setting_says_so() -> None:
    data = _exif_rotated()
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").resize((64, 64), 3))
    turned = prepared(
        data,
        Preprocessing(resize=(64, 64), crop=(64, 64), limits=DecodeLimits(max_pixels=10**6), exif_orientation=True),
    )
    as_sent = prepared(data, Preprocessing(resize=(64, 64), crop=(64, 64), limits=DecodeLimits(max_pixels=10**6)))
    np.testing.assert_array_equal(turned, upright)
    assert not np.array_equal(as_sent, turned)


OUTCOMES = {"decoded", *FaultCode.__value__.__args__}


def outcome_of(data: bytes, preprocessing: Preprocessing) -> str:
    try:
        prepared(data, preprocessing)
    except UnusableImage as error:
        return error.fault.code
    return "decoded"


def fault_of(data: bytes, preprocessing: Preprocessing = PUBLISHED) -> str:
    with pytest.raises(UnusableImage) as caught:
        prepared(data, preprocessing)
    return caught.value.fault.code


def test_no_bytes_are_an_empty_image() -> None:
    assert fault_of(b"") == "empty_image"


@pytest.mark.parametrize("data", [b"hello, world", b"\x00" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_image_is_an_unsupported_format(data: bytes) -> None:
    assert fault_of(data) == "unsupported_format"


def test_a_format_that_pillow_reads_but_the_service_does_not_take_is_unsupported() -> None:
    assert fault_of(photo("PPM")) == "unsupported_format"


@pytest.mark.parametrize("form", FORMATS)
def test_truncated_image_is_undecodable(form: str) -> None:
    data = photo(form, width=200, height=150)
    assert fault_of(data[: len(data) * 2 // 3]) == "undecodable"


def test_pixels_are_limited_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("decoded an image that is over the limit")

    data = bilevel_png(10_000, 10_000)
    assert len(data) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert fault_of(data) == "too_many_pixels"


def test_limit_on_pixels_is_inclusive() -> None:
    limit = Preprocessing(resize=(8, 8), crop=(8, 8), limits=DecodeLimits(max_pixels=80 * 60))
    assert prepared(photo(), limit).shape == (8, 8, 3)
    assert fault_of(photo(width=81), limit) == "too_many_pixels"


@pytest.mark.parametrize("side", [10_000, 14_000, 40_000])
def test_pillows_own_limit_neither_warns_nor_answers_in_the_settings_place(side: int) -> None:
    with warnings.catch_warnings(action="error"):
        assert fault_of(bilevel_png(side, side)) == "too_many_pixels"


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    form=st.sampled_from(FORMATS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    near_start=st.booleans(),
    exif_orientation=st.booleans(),
)
def test_mutilated_files_give_pixels_or_an_unusable_image_and_nothing_else(
    form: str, edits: list[tuple[float, int]], keep: float, near_start: bool, exif_orientation: bool
) -> None:
    data = bytearray(photo(form, width=40, height=30))
    for place, value in edits:
        data[int(place * min(len(data), 80 if near_start else len(data)))] = value
    small = Preprocessing(
        resize=(16, 16), crop=(14, 14), limits=DecodeLimits(max_pixels=10**6), exif_orientation=exif_orientation
    )
    with warnings.catch_warnings(action="ignore"):
        outcome = outcome_of(bytes(data[: int(keep * len(data))]), small)
    assert outcome in OUTCOMES


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tail=st.binary(max_size=200), form=st.sampled_from(FORMATS), head=st.integers(0, 60))
def test_noise_behind_a_true_beginning_is_never_another_exception(tail: bytes, form: str, head: int) -> None:
    small = Preprocessing(resize=(16, 16), crop=(14, 14), limits=DecodeLimits(max_pixels=10**6))
    with warnings.catch_warnings(action="ignore"):
        outcome = outcome_of(photo(form)[:head] + tail, small)
    assert outcome in OUTCOMES
