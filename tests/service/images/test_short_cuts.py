"""The two short cuts of `service.images.preprocessing`: each gives what the long way gives, pixels and refusals."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from service.images import preprocessing as imaging
from service.images.limits import DecodeLimits, UnusableImage
from service.images.preprocessing import (
    Preprocessing,
    decode,
    decode_into,
    decode_usual_jpeg,
    decode_with_pillow,
    prepare_pillow,
    resize_and_crop,
)
from tests.service.pictures import encoded, photo, pixels

prepare_pillow()

ANY_LIMITS = DecodeLimits(max_pixels=10**9)
ANY = Preprocessing(resize=(256, 256), crop=(224, 224), limits=DecodeLimits(max_pixels=10**6))
SIDES = st.one_of(st.integers(1, 20), st.integers(1, 90))


def short(data: bytes) -> NDArray[np.uint8] | None:
    image = decode_usual_jpeg(data, ANY_LIMITS)
    return None if image is None else np.asarray(image.convert("RGB"))


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def picture(width: int, height: int, mode: str, seed: int, rough: bool) -> Image.Image:
    values = pixels(width, height, seed=seed)
    if rough:
        values = np.random.default_rng(seed).integers(0, 256, values.shape, dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


jpegs = st.builds(
    lambda width, height, mode, seed, rough, restart, **options: encoded(
        picture(width, height, mode, seed, rough),
        "JPEG",
        **({} if restart == 0 else {"restart_marker_blocks": restart}),
        **options,
    ),
    width=SIDES,
    height=SIDES,
    mode=st.sampled_from(["RGB", "L"]),
    seed=st.integers(0, 2**32 - 1),
    rough=st.booleans(),
    restart=st.integers(0, 5),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    optimize=st.booleans(),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=jpegs)
def test_usual_jpeg_takes_the_short_way_to_the_same_pixels(data: bytes) -> None:
    np.testing.assert_array_equal(short(data), by_pillow(data))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [50, 75, 90, 100])
def test_real_photos_take_the_short_way_to_the_same_pixels(name: str, progressive: bool, quality: int) -> None:
    data = encoded(Image.fromarray(load_sample_image(name)), "JPEG", quality=quality, progressive=progressive)
    np.testing.assert_array_equal(short(data), by_pillow(data))


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (33, 47), (300, 5), (64, 64)])
def test_every_named_subsampling_takes_the_short_way_to_the_same_pixels(
    subsampling: str, width: int, height: int
) -> None:
    data = simplejpeg.encode_jpeg(pixels(width, height), 80, "RGB", subsampling)
    np.testing.assert_array_equal(short(data), by_pillow(data))


def _in_rgb() -> bytes:
    return photo("JPEG", keep_rgb=True)


def _sampled_by(*factors: int) -> bytes:
    """A JPEG file whose header gives other sampling factors to Y, Cb and Cr."""
    data = bytearray(photo("JPEG", width=64, height=64, subsampling="4:4:4"))
    frame = data.index(b"\xff\xc0")
    for number, factor in enumerate(factors):
        data[frame + 11 + 3 * number] = factor
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(pixels()).convert("CMYK"), "JPEG"),
        _in_rgb(),
        photo("PNG"),
        _sampled_by(0x14, 0x11, 0x11),
    ],
    ids=["cmyk", "rgb", "png", "subsampling without a name"],
)
def test_unusual_file_is_left_to_pillow(data: bytes) -> None:
    assert decode_usual_jpeg(data, ANY_LIMITS) is None
    np.testing.assert_array_equal(np.asarray(decode(data, ANY).convert("RGB")), by_pillow(data))


def outcome(data: bytes, *, short_cut: bool) -> tuple[str, str] | bytes:
    try:
        image = decode(data, ANY) if short_cut else decode_with_pillow(data, ANY)
    except UnusableImage as error:
        return error.fault.code, str(error)
    return image.convert("RGB").tobytes()


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=jpegs,
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    keep=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    tail=st.sampled_from([b"", b"junk" * 9, b"\xff\xd9"]),
    in_headers=st.booleans(),
)
def test_mutilated_jpeg_ends_as_with_pillow_alone(
    data: bytes, edits: list[tuple[float, int]], keep: float, tail: bytes, in_headers: bool
) -> None:
    mutilated = bytearray(data)
    for place, value in edits:
        mutilated[int(place * min(len(data), 650 if in_headers else len(data)))] = value
    mutilated = mutilated[: max(1, int(keep * len(data)))] + tail
    assert outcome(bytes(mutilated), short_cut=True) == outcome(bytes(mutilated), short_cut=False)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_that_is_cut_off_is_refused_wherever_it_is_cut(progressive: bool) -> None:
    data = photo("JPEG", quality=50, progressive=progressive)
    for length in range(3, len(data) - 1):
        with pytest.raises(UnusableImage):
            decode(data[:length], ANY)


def test_pixels_of_a_jpeg_are_limited_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_jpeg(*_: object, **__: object) -> None:
        raise AssertionError("decoded an image that is over the limit")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode_jpeg)
    with pytest.raises(UnusableImage, match=r"1001 x 1000 .*1000000") as caught:
        decode(photo("JPEG", width=1001, height=1000, quality=10), ANY)
    assert caught.value.fault.code == "too_many_pixels"


def test_memory_that_a_thread_keeps_is_bounded_and_images_above_it_are_decoded_all_the_same() -> None:
    for width, height in ((64, 48), (2100, 2000), (64, 48), (200, 100)):
        data = photo("JPEG", width=width, height=height)
        np.testing.assert_array_equal(short(data), by_pillow(data))
    assert len(imaging._kept.memory(1) or b"") < 2100 * 2000 * 4


def test_images_decoded_in_several_threads_at_once_do_not_mix() -> None:
    files = [photo("JPEG", width=90 + seed, height=80, seed=seed) for seed in range(8)]
    expected = [resize_and_crop(Image.open(io.BytesIO(data)).convert("RGB"), ANY) for data in files]

    def prepared(index: int) -> NDArray[np.uint8]:
        out = np.empty((224, 224, 3), np.uint8)
        decode_into(files[index % 8], out, ANY)
        return out

    with ThreadPoolExecutor(4) as pool:
        for index, out in enumerate(pool.map(prepared, range(200))):
            np.testing.assert_array_equal(out, expected[index % 8])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_short_way_turns_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photo("JPEG", exif=exif.tobytes())
    turning = Preprocessing(resize=(8, 8), crop=(8, 8), exif_orientation=True)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(decode(data, turning).convert("RGB")), np.asarray(upright))


NOISE = np.random.default_rng(5).integers(0, 256, (900, 900, 3), dtype=np.uint8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    sides=st.sampled_from([(256, 224), (64, 56), (128, 100), (16, 15), (256, 255), (32, 3)]),
    width=st.floats(0, 1),
    height=st.floats(0, 1),
)
def test_crop_of_a_shrinking_wide_image_is_resized_alone_to_the_same_pixels(
    sides: tuple[int, int], width: float, height: float
) -> None:
    side, crop = sides
    high = side + int(height**2 * (len(NOISE) - side))
    wide = high + int(width**2 * (len(NOISE) - high))
    image = Image.fromarray(NOISE[:high, :wide])
    whole = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    edge = round((side - crop) / 2)
    out = resize_and_crop(
        image, Preprocessing(resize=(side, side), crop=(crop, crop), limits=DecodeLimits(max_pixels=10**9))
    )
    np.testing.assert_array_equal(out, whole[edge : edge + crop, edge : edge + crop])
