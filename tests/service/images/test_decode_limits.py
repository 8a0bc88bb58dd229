"""What a file may cost is bounded before it is decoded, and what of it nobody uses decides nothing."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from service.errors import ImageFault
from service.images.limits import DecodeLimits, UnusableImage
from service.images.preprocessing import Preprocessing, decode, decode_into, prepare_pillow
from tests.service import hostile_images
from tests.service.hostile_images import jpeg_scans, jpeg_segments, jpeg_warned, tiff_plain
from tests.service.pictures import encoded, photo, pixels

prepare_pillow()

SMALL = Preprocessing(resize=(8, 8), crop=(8, 8))


def limited(**limits: int) -> Preprocessing:
    return Preprocessing(resize=(8, 8), crop=(8, 8), limits=DecodeLimits(**limits))


def rgb_of(data: bytes, preprocessing: Preprocessing = SMALL) -> NDArray[np.uint8]:
    return np.asarray(decode(data, preprocessing).convert("RGB"))


def fault_of(data: bytes, preprocessing: Preprocessing = SMALL) -> ImageFault:
    with pytest.raises(UnusableImage) as caught:
        decode(data, preprocessing)
    return caught.value.fault


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode_anything(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was given the file")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_anything)
    monkeypatch.setattr(Image, "open", decode_anything)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode_anything)


REFUSED = [
    "jpeg: many scans", "jpeg: many scans without data", "jpeg: empty segments, CMYK", "png: empty private chunks",
    "gif: empty extensions", "gif: a frame of 4 gigapixels", "bmp: lines that end at once",
    "jpeg: restart markers before the frame", "png: one pixel wide", "png: one line", "bmp: one line",
    "webp: a canvas of few long lines", "tiff: strips upon the same long nothing",
    "tiff: strips of one JPEG of many scans", "tiff: a tile of signed size",
    "tiff: strips upon each other", "tiff: strips of a line", "tiff: tags", "tiff: a JPEG of many scans",
]  # fmt: skip


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("name", REFUSED)
def test_costly_file_is_refused_by_the_default_limits_before_it_is_decoded(name: str) -> None:
    assert fault_of(hostile_images.files()[name]()).code in ("too_complex", "too_many_pixels")


FILES = hostile_images.files(scale=1)


@pytest.mark.parametrize("name", FILES)
def test_hostile_file_is_decoded_or_is_the_images_own_fault(name: str) -> None:
    data = FILES[name]()
    try:
        decode_into(data, np.zeros((8, 8, 3), np.uint8), SMALL)
    except UnusableImage as error:
        is_damaged = name == "tiff: a directory beyond all"
        assert error.fault.code in (("undecodable",) if is_damaged else ("too_complex", "too_many_pixels"))  # noqa: PT017


@pytest.mark.usefixtures("no_decoder")
def test_too_many_scans_are_named_with_their_number() -> None:
    fault = fault_of(jpeg_scans(64, 64, 299), limited(max_scan_pixels=64 * 64 * 299))
    assert fault.code == "too_complex"
    assert "too many scans: 300 of 4096 pixels" in fault.detail


def test_budget_of_scans_is_inclusive() -> None:
    assert rgb_of(jpeg_scans(64, 64, 299), limited(max_scan_pixels=64 * 64 * 300)).shape == (64, 64, 3)


@pytest.mark.usefixtures("no_decoder")
def test_image_of_one_line_costs_as_much_as_the_blocks_that_it_lies_in() -> None:
    fault = fault_of(jpeg_scans(6400, 1, 99), limited(max_scan_pixels=6400 * 8 * 99))
    assert fault.code == "too_complex"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_progressive_files_of_common_encoders_pass_at_the_largest_size(mode: str) -> None:
    """At one pixel more than 18 scans of the image's own, as the default allows for 64 million pixels."""
    data = encoded(Image.fromarray(pixels(96, 64)).convert(mode), "JPEG", progressive=True)
    assert rgb_of(data, limited(max_scan_pixels=18 * 96 * 64)).shape == (64, 96, 3)


def test_what_begins_a_scan_does_not_count_where_none_begins() -> None:
    """In a comment, in a segment between scans, and behind the image."""
    data = photo("JPEG", width=64, height=64, progressive=True)
    fakes = b"\xff\xda\0\2" * 2000
    comment = b"\xff\xfe" + struct.pack(">H", len(fakes) + 2) + fakes
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    padded = data[:2] + comment + data[2:second_scan] + comment + data[second_scan:] + fakes
    limits = limited(max_scan_pixels=64 * 64 * 20)
    np.testing.assert_array_equal(rgb_of(padded, limits), rgb_of(data))


def test_parts_of_a_file_are_counted_up_to_the_setting() -> None:
    data = jpeg_segments(50)
    assert rgb_of(data, limited(max_segments=100)).shape == (16, 16, 3)
    fault = fault_of(data, limited(max_segments=50))
    assert (fault.code, fault.detail) == ("too_complex", "The file has more than 50 segments.")


def test_warning_does_not_buy_a_second_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg_warned(64)
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(data, "RGBX")
    by_pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    monkeypatch.setattr(Image, "open", None)
    np.testing.assert_array_equal(rgb_of(data), by_pillow)


def noise(size: int) -> bytes:
    return np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8).tobytes()


def png_with(kind: bytes, content: bytes, *, checksum: int | None = None) -> bytes:
    data = photo("PNG")
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return data[:33] + chunk + data[33:]


def _png_texts() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", noise(1_500_000).hex(), zip=True)
    return photo("PNG", pnginfo=info)


def _jpeg_with_exif_of_junk() -> bytes:
    data = photo("JPEG")
    return data[:2] + b"\xff\xe1\x00\x1aExif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(6) + data[2:]


def _jpeg_with_exif_beyond_all() -> bytes:
    data, exif = photo("JPEG"), b"Exif\0\0" + hostile_images.big_tiff_of_nothing()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def _apng_that_says_nonsense() -> bytes:
    return png_with(b"acTL", b"\xff" * 8)


METADATA: dict[str, tuple[str, Callable[[], bytes]]] = {
    "png: a profile of 1.3 MB": ("PNG", lambda: photo("PNG", icc_profile=noise(1_300_000))),
    "png: 1.5 MB of compressed text": ("PNG", _png_texts),
    "png: a wrong check sum of a comment": ("PNG", lambda: png_with(b"tEXt", b"a\0b", checksum=1)),
    "png: a profile that does not unpack": ("PNG", lambda: png_with(b"iCCP", b"x\0\0" + noise(99))),
    "png: an animation that says nonsense": ("PNG", _apng_that_says_nonsense),
    "png: EXIF beyond all": ("PNG", lambda: png_with(b"eXIf", hostile_images.big_tiff_of_nothing())),
    "jpeg: EXIF beyond all": ("JPEG", _jpeg_with_exif_beyond_all),
    "png: EXIF of junk": ("PNG", lambda: png_with(b"eXIf", b"II*\0" + noise(99))),
    "jpeg: EXIF of junk": ("JPEG", _jpeg_with_exif_of_junk),
    "jpeg: a profile of 1.3 MB": ("JPEG", lambda: photo("JPEG", icc_profile=noise(1_300_000))),
    "webp: a profile of 1.3 MB": ("WEBP", lambda: photo("WEBP", icc_profile=noise(1_300_000))),
    "gif: a long comment": ("GIF", lambda: photo("GIF", comment=noise(200_000))),
    "tiff: a profile of 1.3 MB": ("TIFF", lambda: photo("TIFF", icc_profile=noise(1_300_000))),
}


@pytest.mark.parametrize("turning", [False, True])
@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_nobody_uses_decide_nothing(name: str, turning: bool) -> None:
    form, make = METADATA[name]
    preprocessing = Preprocessing(resize=(8, 8), crop=(8, 8), exif_orientation=turning)
    np.testing.assert_array_equal(rgb_of(make(), preprocessing), rgb_of(photo(form)))


def with_precision(data: bytes, bits: int) -> bytes:
    frame = data.index(b"\xff\xc0")
    return data[: frame + 4] + bytes((bits,)) + data[frame + 5 :]


def as_process(data: bytes, marker: int) -> bytes:
    frame = data.index(b"\xff\xc0")
    return data[: frame + 1] + bytes((marker,)) + data[frame + 2 :]


def bmp_of_compression(number: int) -> bytes:
    data = bytearray(photo("BMP"))
    data[30:34] = struct.pack("<I", number)
    return bytes(data)


def tiff_with(tag: int, value: int) -> bytes:
    data = bytearray(tiff_plain(16))
    entry = data.index(struct.pack("<HHI", tag, 4, 1))
    data[entry + 8 : entry + 12] = struct.pack("<I", value)
    return bytes(data)


def big_endian_big_tiff() -> bytes:
    entries = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 16), (279, 4, 256)]
    packed = b"".join(
        struct.pack(">HHQ", tag, kind, 1) + struct.pack(">I" if kind == 4 else ">H", value).ljust(8, b"\0")
        for tag, kind, value in entries
    )
    head = b"MM\0+" + struct.pack(">HHQ", 8, 0, 16 + 256)
    return head + bytes(256) + struct.pack(">Q", len(entries)) + packed + bytes(8)


VALID_BUT_NOT_TAKEN = {
    "A BigTIFF whose numbers are big-endian": big_endian_big_tiff,
    "A JPEG of 12 bits": lambda: with_precision(photo("JPEG"), 12),
    "A hierarchical JPEG": lambda: as_process(photo("JPEG"), 0xC5),
    "A JPEG-LS file": lambda: as_process(photo("JPEG"), 0xF7),
    "This kind of BMP": lambda: bmp_of_compression(5),
    "Apple's own variant of PNG": lambda: photo("PNG")[:12] + b"CgBI" + photo("PNG")[16:],
    "compression 34887": lambda: tiff_with(259, 34887),
    "1 x 24 bits a pixel": lambda: tiff_with(258, 24),
    "CIELAB": lambda: encoded(Image.fromarray(pixels(channels=3), "LAB"), "TIFF"),
}


@pytest.mark.parametrize("words", VALID_BUT_NOT_TAKEN)
def test_what_is_valid_and_not_taken_is_not_called_corrupt(words: str) -> None:
    fault = fault_of(VALID_BUT_NOT_TAKEN[words]())
    assert fault.code == "unsupported_encoding"
    assert words in fault.detail


@pytest.mark.parametrize(
    "beginning",
    [
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"II*\0",
        b"RIFF0000WEBP",
        b"BM",
        b"\xff\xd8\xff",
        b"\0\0\0\x18ftypavif",
        b"\0\0\0\x18ftypheic",
    ],
)
def test_file_that_begins_as_one_that_is_taken_is_corrupt_and_no_other_format(beginning: bytes) -> None:
    assert fault_of(beginning + bytes(60)).code == "undecodable"


@pytest.mark.parametrize(
    ("name", "beginning"),
    {
        "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    }.items(),
)
def test_format_of_photos_that_is_not_taken_is_named(name: str, beginning: bytes) -> None:
    fault = fault_of(beginning + bytes(100))
    assert fault.code == "unsupported_format"
    assert fault.detail.startswith(f"{name} is not taken: ")


def turned(form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    return photo(form, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_followed_where_the_setting_says_so_and_nowhere_else(form: str, orientation: int) -> None:
    data, plain = turned(form, orientation), turned(form, 1)
    np.testing.assert_array_equal(rgb_of(data), rgb_of(plain))
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    turning = Preprocessing(resize=(8, 8), crop=(8, 8), exif_orientation=True)
    np.testing.assert_array_equal(rgb_of(data, turning), upright)


def test_turned_tiff_has_the_size_that_it_was_sent_with() -> None:
    timings = decode_into(turned("TIFF", 6), np.zeros((8, 8, 3), np.uint8), SMALL)
    assert (timings.width, timings.height) == (80, 60)


TALKATIVE = {
    "500 tags of nonsense": lambda: tiff_plain(16, more_tags=500),
    "a palette whose transparency is dropped": lambda: encoded(
        Image.fromarray(pixels()).quantize(16), "PNG", transparency=bytes(range(0, 256, 16))
    ),
    "strips that do not unpack": lambda: hostile_images.tiff_strips(64, 64, 1, rows=64, compression=8, data=noise(64)),
    "strips of no JPEG": lambda: hostile_images.tiff_strips(64, 64, 1, rows=64, compression=7, data=noise(64)),
    "a malformed animation": _apng_that_says_nonsense,
}


@pytest.mark.parametrize("name", TALKATIVE)
def test_decoders_write_nothing_anywhere(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare_pillow()  # pytest has put its own filters of warnings over those
    data = TALKATIVE[name]()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        try:
            decode(data, SMALL)
        except UnusableImage as error:
            assert error.fault.code == "undecodable"  # noqa: PT017
    assert not caught
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
