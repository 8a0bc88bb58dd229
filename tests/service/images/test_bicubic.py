"""The resize in C: Pillow's pixels whatever the sizes, and Pillow itself where the library is not for the image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from service.images import bicubic
from service.images import preprocessing as imaging
from service.images.native import __main__ as command
from service.images.native import build as building
from service.images.native.build import BuildError, build, compiler
from service.images.preprocessing import Preprocessing, decode_into, resize_and_crop, resize_and_crop_with_pillow
from tests.service.images.test_preprocessing import ALL, FILES
from tests.service.pictures import naive

NOISE = np.random.default_rng(3).integers(0, 256, (1100, 1100, 4), dtype=np.uint8)
EDGES = np.where(NOISE > 127, np.uint8(255), np.uint8(0))
"""Overshoots wherever a filter can."""
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 1100), st.sampled_from([223, 224, 255, 256, 257, 512, 1024]))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled; skipped where there is no compiler."""
    try:
        compiler()
    except BuildError as missing:
        pytest.skip(str(missing))
    return build(tmp_path_factory.mktemp("native") / "libdat_bicubic.so")


@pytest.fixture(scope="module")
def library(path: Path) -> Iterator[Path]:
    """The library in use; skipped where the processor is not one for it."""
    reason = bicubic.load(path)
    if reason is not None and "AVX2" in reason:
        pytest.skip(reason)
    assert reason is None
    yield path
    bicubic.load()


def by_pillow(
    image: Image.Image, size: tuple[int, int], origin: tuple[int, int], crop: tuple[int, int]
) -> NDArray[np.uint8]:
    whole = image.resize((size[1], size[0]), Image.Resampling.BICUBIC).convert("RGB")
    return np.asarray(whole)[origin[0] : origin[0] + crop[0], origin[1] : origin[1] + crop[1]]


def in_pillows_memory(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(values[..., :3]))


def in_our_memory(values: NDArray[np.uint8]) -> Image.Image:
    height, width = values.shape[:2]
    return Image.frombuffer("RGBX", (width, height), bytearray(values.tobytes()), "raw", "RGBX", 0, 1)


@pytest.mark.parametrize(
    ("size", "crop"),
    [((40, 40), (60, 60)), ((40, 40), (40, 42)), ((40, 40), (42, 40)), ((200, 30), (10, 60)), ((20, 20), (2000, 20))],
)
def test_part_that_lies_outside_the_resized_image_is_black_there(
    library: Path, size: tuple[int, int], crop: tuple[int, int]
) -> None:
    image, preprocessing = in_pillows_memory(NOISE[:80, :90]), Preprocessing(size, crop)
    given = resize_and_crop(image, preprocessing)
    assert np.array_equal(given, resize_and_crop_with_pillow(image, preprocessing))
    assert not given[0, 0].any()


def test_library_without_the_function_is_named(library: Path) -> None:
    reason = bicubic.load(Path("libm.so.6"))
    try:
        assert reason is not None
        assert "libm.so.6, or it does not load" in reason
    finally:
        bicubic.load(library)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    width=SIDES,
    height=SIDES,
    size=st.tuples(*[st.one_of(st.integers(1, 60), st.integers(1, 500), st.sampled_from([256, 438]))] * 2),
    shares=st.tuples(*[st.floats(0, 1)] * 4),
    has_edges=st.booleans(),
    is_ours=st.booleans(),
)
def test_any_part_of_any_resize_has_pillows_pixels(
    library: Path,
    width: int,
    height: int,
    size: tuple[int, int],
    shares: tuple[float, float, float, float],
    has_edges: bool,
    is_ours: bool,
) -> None:
    values = (EDGES if has_edges else NOISE)[:height, :width]
    image = in_our_memory(values) if is_ours else in_pillows_memory(values)
    crop = (1 + int(shares[0] * (size[0] - 1)), 1 + int(shares[1] * (size[1] - 1)))
    origin = (int(shares[2] * (size[0] - crop[0])), int(shares[3] * (size[1] - crop[1])))
    given = bicubic.resized(image, size, origin, crop)
    if given is None:  # a side shorter than the filter, a part of fewer columns than one step takes, nothing to do
        assert (
            (height, width) == size
            or crop[1] < 6
            or any(own < 4 * max(own / other, 1) + 6 for own, other in zip((height, width), size, strict=True))
        )
        preprocessing = Preprocessing(resize=size, crop=crop)
        np.testing.assert_array_equal(
            resize_and_crop(image, preprocessing), resize_and_crop_with_pillow(image, preprocessing)
        )
    else:
        np.testing.assert_array_equal(given, by_pillow(image, size, origin, crop))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("side", [224, 256, 438, 1100], ids=lambda side: f"to {side}")
def test_photos_have_pillows_pixels(library: Path, name: str, side: int) -> None:
    image = Image.fromarray(load_sample_image(name))
    crop = (side - 14, side - 14)
    given = bicubic.resized(image, (side, side), (7, 7), crop)
    assert given is not None
    np.testing.assert_array_equal(given, by_pillow(image, (side, side), (7, 7), crop))


@pytest.mark.parametrize(("width", "height"), [(300, 1100), (1100, 300), (64, 1100), (1100, 64), (40, 1000)])
def test_sides_that_shrink_unlike_are_resized_in_pillows_order(library: Path, width: int, height: int) -> None:
    image = in_our_memory(EDGES[:height, :width])
    given = bicubic.resized(image, (64, 64), (4, 4), (56, 56))
    assert given is not None
    np.testing.assert_array_equal(given, by_pillow(image, (64, 64), (4, 4), (56, 56)))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("preprocessing", ALL, ids=["256 to 224", "438 to 384", "384", "odd"])
def test_every_format_has_the_pixels_of_the_published_steps(
    library: Path, name: str, preprocessing: Preprocessing
) -> None:
    out = np.zeros((*preprocessing.crop, 3), np.uint8)
    decode_into(FILES[name], out, preprocessing)
    with warnings.catch_warnings(action="ignore"):  # Pillow's advice on palettes whose transparency is dropped
        steps = naive(FILES[name], resize=preprocessing.resize, crop=preprocessing.crop)
    np.testing.assert_array_equal(out, steps)


def test_calls_of_several_threads_do_not_mix(library: Path) -> None:
    images = [in_pillows_memory(NOISE[seed : seed + 300, : 400 + seed]) for seed in range(8)]
    expected = [by_pillow(image, (64, 64), (4, 4), (56, 56)) for image in images]
    with ThreadPoolExecutor(4) as pool:
        given = pool.map(lambda number: bicubic.resized(images[number % 8], (64, 64), (4, 4), (56, 56)), range(80))
        for number, each in enumerate(given):
            assert each is not None
            np.testing.assert_array_equal(each, expected[number % 8])


def test_image_in_several_pieces_of_memory_is_left_to_pillow(library: Path) -> None:
    image = Image.new("RGB", (2100, 2100), (3, 2, 1))  # Pillow's pieces are of 16 MB
    preprocessing = Preprocessing(resize=(64, 64), crop=(56, 56))
    assert bicubic.resized(image, (64, 64), (4, 4), (56, 56)) is None
    np.testing.assert_array_equal(resize_and_crop(image, preprocessing), np.full((56, 56, 3), (3, 2, 1)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "F"])
def test_other_modes_are_left_to_pillow(library: Path, mode: str) -> None:
    image = in_pillows_memory(NOISE[:100, :100]).convert(mode)
    assert bicubic.resized(image, (64, 64), (4, 4), (56, 56)) is None


@pytest.fixture
def no_library() -> Iterator[None]:
    """Whatever a test loads is not in use afterwards."""
    used = bicubic._Loaded.resize
    yield
    bicubic._Loaded.resize = used


def made_of(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compile another source in the library's place."""
    file = folder / "other.c"
    file.write_text('#define EXPORTED __attribute__((visibility("default")))\n' + source)
    monkeypatch.setattr(building, "SOURCE", file)
    return build(folder / "libother.so")


@pytest.mark.usefixtures("no_library")
def test_library_that_is_not_there_leaves_all_to_pillow(tmp_path: Path) -> None:
    reason = bicubic.load(tmp_path / "libdat_bicubic.so")
    assert reason is not None
    assert "python -m service.images.native" in reason
    assert bicubic.resized(in_pillows_memory(NOISE[:100, :100]), (64, 64), (4, 4), (56, 56)) is None


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("EXPORTED int dat_bicubic_runs_here(void) { return 0; }", "no AVX2"),
        (
            "EXPORTED int dat_bicubic_runs_here(void) { return 1; } EXPORTED int dat_bicubic(void) { return 0; }",
            "other pixels",
        ),
    ],
    ids=["another processor", "other arithmetic"],
)
def test_library_that_is_not_for_this_machine_or_pillow_is_not_used(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    assert reason in str(bicubic.load(made_of(source, tmp_path, monkeypatch)))
    assert bicubic.resized(in_pillows_memory(NOISE[:100, :100]), (64, 64), (4, 4), (56, 56)) is None


@pytest.mark.usefixtures("no_library")
def test_memory_that_is_not_to_be_had_is_an_error(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "EXPORTED int dat_bicubic_runs_here(void) { return 1; } EXPORTED int dat_bicubic(void) { return 1; }"
    with pytest.raises(MemoryError):
        bicubic.load(made_of(source, tmp_path, monkeypatch))


@pytest.mark.usefixtures("no_library")
def test_what_prepares_pillow_says_who_resizes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "service.images.preprocessing")
    monkeypatch.setattr(bicubic, "load", lambda: "Pillow resizes: a reason.")
    imaging.prepare_pillow()
    assert [record.getMessage() for record in caplog.records] == ["Pillow resizes: a reason."]


def test_build_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BuildError, match="no C compiler 'no-such-compiler'"):
        build(tmp_path / "libdat_bicubic.so")
    assert command.main() == 1


def test_build_that_fails_says_what_the_compiler_said_and_leaves_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BuildError, match=r"could not compile(.|\n)*error"):
        made_of("what?", tmp_path, monkeypatch)
    assert [each.name for each in tmp_path.iterdir()] == ["other.c"]
