"""AVIF and HEIC: the picture that counts, as it lies, in its true range; and what costs too much, or is not taken."""

from __future__ import annotations

import base64
import io
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageFile, ImageOps

from service.errors import ImageFault
from service.images import formats, heic
from service.images.limits import DEFAULT_LIMITS, DecodeLimits, UnusableImage
from service.images.preprocessing import Preprocessing, decode, decode_into, prepare_pillow
from tests.service.heif_files import (
    Item,
    av1,
    av1_frame,
    av1_sequence,
    box,
    coded,
    grid,
    heif,
    hevc_configuration,
    hevc_set,
    hevc_slices,
    ispe,
    obu,
)  # fmt: skip
from tests.service.pictures import encoded, photo, pixels

prepare_pillow()

SMALL = Preprocessing(resize=(8, 8), crop=(8, 8))
TURNING = replace(SMALL, exif_orientation=True)
FORMS = ["AVIF", "HEIF"]
FULL_CHROMA = {"AVIF": {"subsampling": "4:4:4"}, "HEIF": {"chroma": 444}}
"""For which what lies beside a tile does not matter."""
AV1C = box(b"av1C", b"\x81\0\x0c\0")


def rgb_of(data: bytes, preprocessing: Preprocessing = SMALL) -> NDArray[np.uint8]:
    return np.asarray(decode(data, preprocessing).convert("RGB"))


def rgb_by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def fault_of(data: bytes, preprocessing: Preprocessing = SMALL) -> ImageFault:
    with pytest.raises(UnusableImage) as caught:
        decode(data, preprocessing)
    return caught.value.fault


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_anything(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was given the file")

    monkeypatch.setattr(Image, "open", decode_anything)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode_anything)


FILES = {
    "avif": lambda: photo("AVIF", width=131, height=77),
    "avif 4:4:4": lambda: photo("AVIF", subsampling="4:4:4", quality=95),
    "avif of limited range": lambda: photo("AVIF", range="limited"),
    "avif grey": lambda: encoded(Image.fromarray(pixels()).convert("L"), "AVIF"),
    "heic": lambda: photo("HEIF", width=131, height=77),
    "heic 4:4:4": lambda: photo("HEIF", chroma=444, quality=95),
    "heic in tiles, as phones write": lambda: photo("HEIF", width=200, height=150, tile_size=64),
    "heic grey": lambda: encoded(Image.fromarray(pixels()).convert("L"), "HEIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_the_whole_file(name: str) -> None:
    data = FILES[name]()
    np.testing.assert_array_equal(rgb_of(data), rgb_by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", FORMS)
def test_turns_and_mirrors_are_followed_where_the_setting_says_so(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photo(form, exif=exif.tobytes())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(rgb_of(data, TURNING), upright)
    np.testing.assert_array_equal(rgb_of(data), rgb_of(photo(form)))


@pytest.mark.parametrize("angle", range(4))
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mirror_first", [False, True])
def test_turn_and_mirror_apply_in_the_order_of_the_file(angle: int, axis: int, mirror_first: bool) -> None:
    steps = [box(b"irot", bytes((angle,))), box(b"imir", bytes((axis,)))]
    if mirror_first:
        steps.reverse()
    data = heif([coded("AVIF").item(properties=steps)])
    image = Image.fromarray(rgb_of(data))
    for step in steps:
        if b"irot" in step:
            image = image.rotate(90 * angle, expand=True)
        else:
            image = ImageOps.mirror(image) if axis else ImageOps.flip(image)
    np.testing.assert_array_equal(rgb_of(data, TURNING), np.asarray(image))


@pytest.mark.parametrize("form", FORMS)
def test_exif_in_these_formats_turns_nothing(form: str) -> None:
    exif = b"\0\0\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    data = heif([coded(form).item(), Item(b"Exif", exif)])
    np.testing.assert_array_equal(rgb_of(data, TURNING), rgb_of(data))


def clap(width: int, height: int, across: int, down: int, halves: int = 1) -> bytes:
    return box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, across, halves, down, halves))


@pytest.mark.parametrize("form", FORMS)
def test_clean_aperture_is_what_of_the_picture_counts(form: str) -> None:
    whole = rgb_of(heif([coded(form).item()]))
    turned = [clap(40, 20, 2, -3), box(b"irot", b"\1")]
    cropped = rgb_of(heif([coded(form).item(properties=turned)]))
    np.testing.assert_array_equal(cropped, whole[19:39, 14:54])
    assert rgb_of(heif([coded(form).item(properties=turned)]), TURNING).shape == (40, 20, 3)
    assert fault_of(heif([coded(form).item(properties=[clap(40, 20, 13, 0)])])).code == "undecodable"
    assert fault_of(heif([coded(form).item(properties=[clap(40, 20, 0, 0, halves=0)])])).code == "undecodable"
    assert fault_of(heif([coded(form).item(properties=[clap(41, 20, 0, 0)])])).code == "unsupported_encoding"
    assert fault_of(heif([coded(form).item(properties=turned[::-1])])).code == "unsupported_encoding"


@pytest.mark.parametrize("form", FORMS)
def test_primary_item_counts_and_no_other(form: str) -> None:
    items = [coded(form, seed=seed).item() for seed in range(3)]
    pictures = [rgb_of(heif([item])) for item in items]
    for number in (1, 2, 3):
        np.testing.assert_array_equal(rgb_of(heif(items, primary=number)), pictures[number - 1])


def test_still_image_of_an_animation_is_what_counts() -> None:
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], duration=40)
    assert data[8:12] == b"avis"
    np.testing.assert_array_equal(rgb_of(data), rgb_by_pillow(data))


def test_alpha_is_dropped_as_of_other_formats() -> None:
    data = encoded(Image.fromarray(pixels(channels=4)), "AVIF")
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    np.testing.assert_array_equal(rgb_of(data), rgb_by_pillow(data))
    assert len(formats.essence(data, DEFAULT_LIMITS).data) < len(data)


@pytest.mark.parametrize("form", FORMS)
def test_tiles_lie_row_by_row_and_are_cut_at_the_border(form: str) -> None:
    tiles = [coded(form, seed=seed, **FULL_CHROMA[form]) for seed in range(6)]
    parts = [rgb_of(heif([tile.item()])) for tile in tiles]
    whole = np.vstack([np.hstack(parts[:3]), np.hstack(parts[3:])])
    items = [Item(b"grid", grid(2, 3, 170, 101), [ispe(170, 101)], parts=range(2, 8)), *(t.item() for t in tiles)]
    np.testing.assert_array_equal(rgb_of(heif(items)), whole[:101, :170])


@pytest.mark.parametrize("form", FORMS)
def test_equal_tiles_may_be_written_once(form: str) -> None:
    tile = coded(form, **FULL_CHROMA[form]).item()
    items = [Item(b"grid", grid(1, 2, 128, 64), [ispe(128, 64)], parts=[2, 2]), tile]
    picture = rgb_of(heif([tile]))
    np.testing.assert_array_equal(rgb_of(heif(items)), np.hstack([picture, picture]))


@pytest.mark.parametrize("form", FORMS)
def test_metadata_are_not_given_to_the_decoder(form: str) -> None:
    secret = np.random.default_rng(3).integers(0, 256, 1_300_000, dtype=np.uint8).tobytes()
    data = photo(form, icc_profile=secret, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + secret[:60_000])
    assert len(formats.essence(data, DEFAULT_LIMITS).data) < 20_000
    np.testing.assert_array_equal(rgb_of(data), rgb_of(photo(form)))


# What libavif wrote without loss of 8 x 8 colours, whose channels are a ramp over the whole range, the same upside down
# and the same on its side.
DEEP_AVIF = {
    10: (
        "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAA"
        "AAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAnwAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFD"
        "b2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAACAAAAAgAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJu"
        "Y2x4AAIAAgAAgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAp21kYXQSAAoIOAi/5wICAJAykAEQAAD8n+bQwKltp/5GT6rHfBjKDyaq"
        "ldKOdbJ/w42l5YWb/LDKYpGDRmOhP7NKots+0HcwUpzDZE7m8U8vibxStG1d4pFYR/jIoiQhb/IvxBS9w9ikr2MJ83zqyhM9k14O4eN4"
        "OmzM/Ec+4augP7mm4bDXG2Xozo8VX/iD8mIDsiv8InOxGaMDZMeJS9uMaIA="
    ),
    12: (
        "AAAAHGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZgAAAOttZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAAA5w"
        "aXRtAAAAAAABAAAAHmlsb2MAAAAARAAAAQABAAAAAQAAAQ8AAACgAAAAKGlpbmYAAAAAAAEAAAAaaW5mZQIAAAAAAQAAYXYwMUNvbG9y"
        "AAAAAGppcHJwAAAAS2lwY28AAAAUaXNwZQAAAAAAAAAIAAAACAAAABBwaXhpAAAAAAMMDAwAAAAMYXYxQ4FAYAAAAAATY29scm5jbHgA"
        "AgACAACAAAAAF2lwbWEAAAAAAAAAAQABBAECgwQAAACobWRhdBIACghYCL/jQICAIjKRARAAAPTY2Em/b7Oh/0Iado+SYr32GQLJZ61m"
        "a3p2wfe9HYWvQuEtZTgm41bs+Vr8/JU3QbkO5jhuOgzn+26N9U94X1wwx7Qar5KhSA1CaqN4ORC5nOCi6P3VRVr0LuGxPZKpkmL/dVoA"
        "/FyGuOu108Dkav7ehaSMSiLIr3HKW2pZYmCm9YXIMkvP+FfDCMxkVKA="
    ),
}


def ramp(bits: int) -> NDArray[np.int64]:
    one = np.linspace(0, 2**bits - 1, 64).round().astype(np.int64).reshape(8, 8)
    return np.stack([one, one[::-1], one.T], axis=-1)


@pytest.mark.parametrize("bits", DEEP_AVIF)
def test_avif_of_more_bits_has_its_true_range(bits: int) -> None:
    light = rgb_of(base64.b64decode(DEEP_AVIF[bits])).astype(float)
    np.testing.assert_allclose(light, ramp(bits) * 255 / (2**bits - 1), atol=1)


@pytest.mark.parametrize("bits", [10, 12])
def test_heic_of_more_bits_has_its_true_range(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    values = np.kron(ramp(bits), np.ones((8, 8, 1), np.int64))
    file = io.BytesIO()
    samples = (values << 16 - bits).astype("<u2").tobytes()
    pillow_heif.encode("RGB;16", (64, 64), samples, file, quality=-1, chroma=444, matrix_coefficients=0)
    np.testing.assert_array_equal(rgb_of(file.getvalue()), values >> bits - 8)


def test_heic_of_more_than_12_bits_is_not_taken() -> None:
    configuration = hevc_configuration(hevc_set(64, 64, depth=16))
    fault = fault_of(heif([Item(b"hvc1", hevc_slices(1), [configuration, ispe(64, 64)])]))
    assert fault.code == "unsupported_encoding"
    assert fault.detail.startswith("A HEIC file of more than 12 bits a channel is not taken")


def many(count: int, data: bytes = b"x") -> list[Item]:
    return [Item(b"mime", data)] * count


def tiles(rows: int, columns: int, tile: Item, *, side: int = 64) -> bytes:
    width, height = columns * side, rows * side
    parts = [2] * (rows * columns)
    return heif([Item(b"grid", grid(rows, columns, width, height), [ispe(width, height)], parts=parts), tile])


def av1_item(data: bytes, width: int = 64, height: int = 64) -> bytes:
    return heif([Item(b"av01", data, [AV1C, ispe(width, height)])])


def hevc_item(sets: list[bytes], data: bytes) -> bytes:
    return heif([Item(b"hvc1", data, [hevc_configuration(*sets), ispe(64, 64)])])


COSTLY: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a picture of 4 gigapixels": ("too_many_pixels", lambda: av1_item(av1(64, 64), 65_535, 65_535)),
    "av1: a sequence that is larger than its item": ("too_many_pixels", lambda: av1_item(av1(65_000, 65_000))),
    "av1: the same, reduced": ("too_many_pixels", lambda: av1_item(obu(2, b"") + av1_sequence(
        65_000, 65_000, reduced=True) + obu(6, bytes(8)))),
    "av1: a second sequence that is larger": (
        "too_many_pixels", lambda: av1_item(av1(64, 64) + av1_sequence(65_000, 65_000) + av1_frame())
    ),
    "av1: a frame with a size of its own": ("too_many_pixels", lambda: av1_item(av1(64, 64, overrides_size=True))),
    "av1: many frames": ("too_complex", lambda: av1_item(av1(64, 64, frames=5))),
    "av1: empty units": ("too_complex", lambda: av1_item(obu(2, b"") * 20_000)),
    "hevc: a sequence that is larger than its item": (
        "too_many_pixels", lambda: hevc_item([hevc_set(60_000, 60_000, sublayers=3)], hevc_slices(1))
    ),
    "hevc: a second set in the data": ("too_many_pixels", lambda: hevc_item(
        [hevc_set(64, 64)], struct.pack(">I", len(hevc_set(60_000, 60_000))) + hevc_set(60_000, 60_000))),
    "hevc: many slices": ("too_complex", lambda: hevc_item([hevc_set(8000, 8000)], hevc_slices(6))),
    "hevc: many pictures": ("too_complex", lambda: hevc_item([hevc_set(64, 64)], hevc_slices(9, pictures=9))),
    "hevc: many sets": ("too_complex", lambda: hevc_item([hevc_set(64, 64)] * 1000, hevc_slices(16_000))),
    "a grid of 65,280 tiles": ("too_complex", lambda: tiles(255, 256, coded("AVIF").item())),
    "a grid of 1,000 tiles": ("too_complex", lambda: tiles(25, 40, coded("AVIF").item())),
    "a grid of tiles that are much larger than it": ("too_complex", lambda: heif([
        Item(b"grid", grid(2, 2, 7901, 7901), [ispe(7901, 7901)], parts=[2] * 4),
        Item(b"av01", av1(7900, 7900, frames=2), [AV1C, ispe(7900, 7900)])])),
    "a grid of gigapixels": ("too_many_pixels", lambda: tiles(20, 20, coded("AVIF").item(), side=1000)),
    "long tiles upon each other": ("too_complex", lambda: tiles(
        20, 20, coded("AVIF").item(data=coded("AVIF").data + obu(15, bytes(5000))))),
    "20,000 items": ("too_complex", lambda: heif([coded("AVIF").item(), *many(20_000)])),
    "20,000 boxes": ("too_complex", lambda: heif([coded("AVIF").item()], before=box(b"free") * 20_000)),
    "20,000 boxes within": ("too_complex", lambda: heif([coded("AVIF").item()], more_meta=box(b"free") * 20_000)),
    "20,000 properties": ("too_complex", lambda: heif([
        coded("AVIF").item(), *(Item(b"av01", b"x", [box(b"free", struct.pack(">I", n)) for n in range(i, i + 200)])
        for i in range(0, 20_000, 200))])),
}  # fmt: skip


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("name", COSTLY)
def test_costly_file_is_refused_before_it_is_decoded(name: str) -> None:
    code, make = COSTLY[name]
    data = make()
    assert fault_of(data).code == code


def patched(data: bytes, kind: bytes, place: int, value: bytes) -> bytes:
    at = data.index(kind) + place
    return data[:at] + value + data[at + len(value) :]


def plain() -> bytes:
    return heif([coded("AVIF").item()])


def grid_of(parts: list[int], content: bytes, size: tuple[int, int] = (128, 64), **options: int) -> bytes:
    item = Item(b"grid", content, [ispe(*size)], parts=parts)
    return heif([item, coded("AVIF").item(), coded("AVIF", 32, 32).item(), Item(b"mime", b"x")], **options)


GRID = grid(1, 2, 128, 64)
BROKEN: dict[str, Callable[[], bytes]] = {
    "nothing behind the brand": lambda: plain()[:24],
    "a box that is longer than the file": lambda: patched(plain(), b"meta", -4, b"\x7f\xff\xff\xff"),
    "a box that is shorter than its head": lambda: patched(plain(), b"meta", -4, b"\0\0\0\7"),
    "a box within that is longer than its box": lambda: patched(plain(), b"ipco", -4, b"\0\1\0\0"),
    "a box of 2^64 bytes": lambda: patched(plain(), b"meta", -4, b"\0\0\0\1")[:40] + b"\xff" * 400,
    "no primary item": lambda: patched(plain(), b"pitm", 0, b"free"),
    "a primary item that is not there": lambda: heif([coded("AVIF").item()], primary=9),
    "two lists of places": lambda: heif([coded("AVIF").item()], more_meta=box(b"iloc", bytes(8))),
    "two derivations": lambda: grid_of([2, 2], GRID, references=2),
    "a grid of nothing": lambda: grid_of([], GRID),
    "a grid of an item that is not there": lambda: grid_of([2, 77], GRID),
    "a grid with a tile too many": lambda: grid_of([2, 2, 2], GRID),
    "a grid with tiles of two sizes": lambda: grid_of([2, 3], GRID),
    "a grid whose tiles do not cover it": lambda: grid_of([2, 2], grid(1, 2, 200, 64), (200, 64)),
    "a grid with tiles beyond it": lambda: grid_of([2, 2], grid(1, 2, 64, 64), (64, 64)),
    "a grid of another size than its item": lambda: grid_of([2, 2], GRID, (128, 60)),
    "a grid that is cut short": lambda: grid_of([2, 2], GRID[:7]),
    "an item of 0 pixels": lambda: patched(plain(), b"ispe", 8, bytes(4)),
    "no size": lambda: heif([Item(b"av01", coded("AVIF").data, [coded("AVIF").configuration])]),
    "two sizes": lambda: heif([coded("AVIF").item(properties=[ispe(32, 32)])]),
    "no configuration": lambda: heif([Item(b"av01", coded("AVIF").data, [ispe(64, 64)])]),
    "a short configuration": lambda: heif([Item(b"av01", coded("AVIF").data, [box(b"av1C", b"\x81"), ispe(64, 64)])]),
    "data beyond the file": lambda: heif([coded("AVIF").item(place=(100, 1 << 30))]),
    "no data": lambda: heif([coded("AVIF").item(data=b"")]),
    "av1: a frame without a sequence": lambda: av1_item(av1_frame()),
    "av1: no frame": lambda: av1_item(av1_sequence(64, 64)),
    "av1: a unit that is longer than the data": lambda: av1_item(av1(64, 64)[:-4]),
    "av1: headers that end": lambda: av1_item(obu(1, b"\x08")),
    "av1: no data behind the headers": lambda: av1_item(av1(64, 64)),
    "hevc: no set": lambda: hevc_item([b"\x40\1\0"], hevc_slices(1)),
    "hevc: a set that ends": lambda: hevc_item([b"\x42\1\0"], hevc_slices(1)),
    "hevc: a set of zeros": lambda: hevc_item([b"\x42\1" + bytes(200)], hevc_slices(1)),
    "hevc: a unit that is longer than the data": lambda: hevc_item([hevc_set(64, 64)], hevc_slices(1)[:-1]),
    "hevc: slices that belong to nothing": lambda: hevc_item([hevc_set(64, 64)], hevc_slices(2, pictures=0)),
    "hevc: no data behind the headers": lambda: hevc_item([hevc_set(64, 64)], hevc_slices(1)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_undecodable(name: str) -> None:
    assert fault_of(BROKEN[name]()).code == "undecodable"


NOT_TAKEN: dict[str, Callable[[], bytes]] = {
    "A sequence of images without a still one": lambda: box(b"ftyp", b"avis", bytes(4)) + box(b"moov"),
    "small header of a mini box": lambda: box(b"ftyp", b"mif3", b"avif") + box(b"mini", bytes(40)),
    "coded as neither AV1 (AVIF) nor HEVC (HEIC)": lambda: heif([Item(b"jpeg", b"x", [ispe(8, 8)])]),
    "AV1 (AVIF) nor HEVC (HEIC), or derived": lambda: grid_of([1, 1], GRID),
    "or derived": lambda: heif([Item(b"iden", b"x", [ispe(8, 8)], parts=[2]), coded("AVIF").item()]),
    "AVIF with properties that are essential and not known": lambda: heif([
        coded("AVIF").item(properties=[box(b"what", bytes(4))])]),
    "AVIF whose tiles are turned or cropped": lambda: tiles(
        1, 2, coded("AVIF").item(properties=[box(b"irot", b"\1")])),
    "AVIF that is encrypted": lambda: patched(plain(), b"av01", -2, b"\0\1"),
}  # fmt: skip


@pytest.mark.parametrize("words", NOT_TAKEN)
def test_what_is_valid_and_not_taken_is_not_called_corrupt(words: str) -> None:
    fault = fault_of(NOT_TAKEN[words]())
    assert fault.code == "unsupported_encoding"
    assert words in fault.detail


@pytest.mark.parametrize("form", FORMS)
def test_what_is_known_or_not_essential_stands_in_no_pictures_way(form: str) -> None:
    known = [box(b"pixi", bytes(4), b"\3\x08\x08\x08"), box(b"pasp", bytes(7) + b"\1")]
    data = heif([coded(form).item(properties=known, optional=[box(b"what", bytes(4)), box(b"colr", b"prof" * 9)])])
    np.testing.assert_array_equal(rgb_of(data), rgb_of(heif([coded(form).item()])))


@pytest.mark.parametrize("brand", [b"mif1", b"heic", b"avis"])
def test_coding_decides_and_not_the_brand(brand: bytes) -> None:
    data = heif([coded("AVIF").item()], brand=brand)
    np.testing.assert_array_equal(rgb_of(data), rgb_of(plain()))


def test_brand_may_be_among_the_compatible_ones() -> None:
    data = heif([coded("AVIF").item()], brand=b"abcd", compatible=[b"efgh", b"avif"])
    np.testing.assert_array_equal(rgb_of(data), rgb_of(plain()))
    assert fault_of(heif([coded("AVIF").item()], brand=b"isom", compatible=[b"mp41"])).code == "unsupported_format"


def test_what_lies_behind_the_pictures_own_boxes_does_not_matter() -> None:
    data = heif([coded("AVIF").item()], after=b"\0\0\0\3trailer of a phone")
    np.testing.assert_array_equal(rgb_of(data), rgb_of(plain()))


def test_pixels_are_bounded_by_the_settings_limit() -> None:
    exactly = replace(SMALL, limits=DecodeLimits(max_pixels=64 * 64, max_scan_pixels=4 * 64 * 64))
    assert rgb_of(plain(), exactly).shape == (64, 64, 3)
    for limits in (DecodeLimits(max_pixels=64 * 64 - 1), DecodeLimits(max_scan_pixels=4 * 64 * 64 - 1)):
        assert fault_of(plain(), replace(SMALL, limits=limits)).code in ("too_many_pixels", "too_complex")


def test_without_pillow_heif_heic_is_refused_with_the_requirements_that_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = photo("HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, heic.FORM)
    heic.load()
    fault = fault_of(data)
    assert fault.code == "unsupported_format"
    assert fault.detail == "HEIC is read where pillow-heif is installed: requirements/heic.txt."
    assert fault_of(b"text of some length").detail.endswith("JPEG, PNG, WEBP, BMP, GIF, TIFF or AVIF.")


def test_with_pillow_heif_heic_is_among_the_formats_that_are_taken() -> None:
    assert fault_of(b"text of some length").detail.endswith("JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF or HEIC.")


@pytest.mark.parametrize("form", FORMS)
def test_decoders_write_nothing_anywhere(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(photo(form, width=200, height=150))
    for place in range(len(data) // 2, len(data), 7):
        data[place] ^= 0x55
    try:
        decode(bytes(data), SMALL)
    except UnusableImage as error:
        assert error.fault.code == "undecodable"  # noqa: PT017
    assert capfd.readouterr() == ("", "")


def mutated(data: bytes, source: random.Random) -> bytes:
    """Return a file with some bytes changed, doubled or taken out, most of them in its boxes."""
    out = bytearray(data)
    for _ in range(source.randint(1, 6)):
        place = source.randrange(len(out)) if source.random() < 0.3 else source.randrange(min(len(out), 700))
        change = source.randrange(5)
        if change == 0:
            out[place] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif change == 1:
            out[place] = source.randrange(256)
        elif change == 2:
            out[place : place + 4] = struct.pack(">I", source.choice((0, 1, 7, 8, 2**31, 2**32 - 1, len(data))))
        elif change == 3:
            del out[place : place + source.randint(1, 16)]
        else:
            out[place:place] = out[place : place + source.randint(1, 64)]
    return bytes(out)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("form", FORMS)
def test_mutated_files_give_pixels_or_an_unusable_image_and_nothing_else(form: str, seed: int) -> None:
    source = random.Random(seed)
    tile = coded(form)
    grids = [Item(b"grid", grid(1, 2, 128, 64), [ispe(128, 64)], parts=[2, 3]), tile.item(), coded(form, seed=1).item()]
    files = [photo(form, width=40, height=30), heif([tile.item(properties=[box(b"irot", b"\1")])]), heif(grids)]
    limited = replace(TURNING, limits=DecodeLimits(max_pixels=10**6, max_scan_pixels=2 * 10**7, max_segments=2000))
    out = np.zeros((8, 8, 3), np.uint8)
    outcomes = set()
    for index in range(250):
        try:
            decode_into(mutated(files[index % len(files)], source), out, limited)
            outcomes.add("decoded")
        except UnusableImage as error:
            outcomes.add(error.fault.code)
    assert outcomes <= {
        *("decoded", "unsupported_format", "unsupported_encoding", "undecodable", "too_many_pixels", "too_complex"),
    }
    assert {"decoded", "undecodable"} <= outcomes


def test_decoders_start_no_threads_of_their_own_choice() -> None:
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1
    assert pillow_heif.options.DECODE_THREADS == 1
