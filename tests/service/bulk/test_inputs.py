from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.inputs import InputError, Item, row_groups, row_items, shard_items
from service.images.names import LeftOut
from service.predictors.types import Fault
from tests.service.bulk.sets import write_shard

MAX_BYTES = 100


def codes(items: list[Item]) -> list[str | None]:
    return [item.data.code if isinstance(item.data, Fault) else None for item in items]


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_a_shard_gives_its_images_with_their_keys_and_passes_over_the_rest(tmp_path: Path, name: str) -> None:
    members = {
        "a/1.5/0001.jpg": b"one", "a/1.5/0001.cls": b"3", "0002.JPEG": b"two", "0002.seg.png": b"mask", ".png": b"",
        "notes.txt": b"", "big.png": bytes(MAX_BYTES + 1), "last.webp": b"",
    }  # fmt: skip
    items = list(shard_items(str(write_shard(tmp_path / name, members)), MAX_BYTES))
    assert [(item.row, item.key, item.name) for item in items] == [
        (0, "a/1.5/0001", "a/1.5/0001.jpg"),
        (1, "0002", "0002.JPEG"),
        (2, "0002", "0002.seg.png"),
        (3, "big", "big.png"),
        (4, "last", "last.webp"),
    ]
    assert [item.data for item in items if not isinstance(item.data, Fault)] == [b"one", b"two", b"mask", b""]
    assert codes(items) == [None, None, None, "too_large", None]


def test_a_link_under_an_images_name_is_no_silent_loss(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s.tar", {"a.png": b"one"})
    with tarfile.open(path, "a") as shard:
        for name, kind in [("b.png", tarfile.LNKTYPE), ("c.png", tarfile.SYMTYPE), ("d.png", tarfile.DIRTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.png"
            shard.addfile(member)
    items = list(shard_items(str(path), MAX_BYTES))
    assert [item.name for item in items] == ["a.png", "b.png", "c.png"]
    assert codes(items) == [None, "not_a_file", "not_a_file"]


def cut_in_a_member(data: bytes) -> bytes:
    return data[: 3 * 512 + 300]


def cut_between_members(data: bytes) -> bytes:
    return data[: 4 * 512]


def spoiled_header(data: bytes) -> bytes:
    return data[: 4 * 512] + b"x" * 512 + data[5 * 512 :]


def cut_gzip(data: bytes) -> bytes:
    packed = gzip.compress(data)
    return packed[: len(packed) // 2]


def spoiled_gzip(data: bytes) -> bytes:
    packed = bytearray(gzip.compress(data, 0))
    packed[4 * 512 + 100 : 4 * 512 + 200] = b"y" * 100
    return bytes(packed)


@pytest.mark.parametrize("damage", [cut_in_a_member, cut_between_members, spoiled_header, cut_gzip, spoiled_gzip])
def test_a_shard_that_breaks_off_says_so_after_what_it_gave(tmp_path: Path, damage) -> None:
    path = write_shard(tmp_path / "s.tar", {f"{number}.png": bytes([number]) * 99 for number in range(30)})
    path.write_bytes(damage(path.read_bytes()))
    *good, last = shard_items(str(path), MAX_BYTES)
    assert [item.data for item in good] == [bytes([number]) * 99 for number in range(len(good))]
    assert (last.row, last.key) == (len(good), None)
    assert codes([last]) == ["bad_shard"]


def shard_bytes(folder: Path, *names: str, end: bytes = bytes(10240)) -> bytes:
    data = write_shard(folder / "one.tar", {name: name.encode() for name in names}).read_bytes()
    return data.rstrip(b"\0").ljust((len(data.rstrip(b"\0")) + 511) // 512 * 512, b"\0") + end


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("end", [bytes(512), bytes(1024), bytes(10240)], ids=len)
def test_shards_put_one_behind_another_are_read_to_the_end(tmp_path: Path, pack, end: bytes) -> None:
    path = tmp_path / "s.tar"
    shards = [shard_bytes(tmp_path, *names, end=end) for names in (["a.png", "b.png"], ["c.png"], ["d.png"])]
    for data in (pack(b"".join(shards)), b"".join(map(pack, shards))):
        path.write_bytes(data)
        items = list(shard_items(str(path), MAX_BYTES))
        assert [(item.row, item.data) for item in items] == [
            (row, name.encode()) for row, name in enumerate(["a.png", "b.png", "c.png", "d.png"])
        ]


@pytest.mark.parametrize("behind", [b"x" * 512, b"x" * 100, "cut"])
def test_what_is_damaged_behind_the_first_shard_says_so(tmp_path: Path, behind: bytes | str) -> None:
    path = tmp_path / "s.tar"
    second = shard_bytes(tmp_path, "b.png", "c.png")[: 3 * 512] if behind == "cut" else behind
    path.write_bytes(shard_bytes(tmp_path, "a.png") + second)
    items = list(shard_items(str(path), MAX_BYTES))
    assert [item.name for item in items] == (["a.png", "b.png", None] if behind == "cut" else ["a.png", None])
    assert codes(items)[-1] == "bad_shard"


def test_members_that_are_no_images_are_counted(tmp_path: Path) -> None:
    members = ["a/1.cls", "a/1.jpg", "a/1.json", "b/1.json", "2.jxl", "._3.jpg", "README", "4.txt", "4.png"]
    path = write_shard(tmp_path / "s.tar", dict.fromkeys(members, b"x"))
    with tarfile.open(path, "a") as shard:
        folder = tarfile.TarInfo("c.d")
        folder.type = tarfile.DIRTYPE
        shard.addfile(folder)
    left_out = LeftOut()
    assert len(list(shard_items(str(path), MAX_BYTES, left_out))) == 2
    assert left_out == LeftOut(
        others=Counter({".json": 1, ".jxl": 1, "no suffix": 1}),
        companions=Counter({".cls": 1, ".json": 1, ".txt": 1}),
        hidden=1,
    )


def test_a_file_that_is_no_shard_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(b"x" * 5000)
    assert codes(list(shard_items(str(path), MAX_BYTES))) == ["bad_shard"]


def test_what_the_system_cannot_read_is_no_fault_of_the_shard(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        list(shard_items(str(tmp_path / "gone.tar"), MAX_BYTES))


def write_rows(path: Path, columns: dict[str, object], *, row_group_size: int = 3) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def test_rows_are_bytes_or_structs_of_bytes_and_path(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "plain.parquet", {"jpg": [b"a", None, bytes(MAX_BYTES + 1)], "n": [1, 2, 3]})
    (groups,) = row_groups(plain, None, rows=100)
    items = list(row_items(groups, MAX_BYTES))
    assert [(item.row, item.name) for item in items] == [(0, None), (1, None), (2, None)]
    assert (items[0].data, codes(items)) == (b"a", [None, "no_image", "too_large"])

    images = [{"bytes": b"a", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None]
    structs = write_rows(tmp_path / "structs.parquet", {"other": [b""] * 3, "image": images})
    (groups,) = row_groups(structs, None, rows=100)
    items = list(row_items(groups, MAX_BYTES))
    assert [(item.name, item.data if item.row == 0 else None) for item in items] == [
        ("a.jpg", b"a"),
        ("b.jpg", None),
        (None, None),
    ]
    assert codes(items) == [None, "no_image", "no_image"]


def test_row_groups_go_together_until_there_are_rows_enough(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.parquet", {"image": [bytes([number]) for number in range(20)]})
    found = list(row_groups(path, None, rows=5))
    assert [(each.first, each.count, each.first_row, each.rows) for each in found] == [
        (0, 2, 0, 6),
        (2, 2, 6, 6),
        (4, 2, 12, 6),
        (6, 1, 18, 2),
    ]
    items = [item for each in found for item in row_items(each, MAX_BYTES)]
    assert [(item.row, item.data) for item in items] == [(number, bytes([number])) for number in range(20)]


def test_a_column_that_is_not_clear_or_not_there_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.parquet", {"a": [b""], "b": [b""], "n": [1]})
    assert next(row_groups(path, "b", rows=1)).column == "b"
    for column, reason in [(None, "--column, of a, b"), ("n", "'n' holds no bytes"), ("c", "'c' is not there")]:
        with pytest.raises(InputError, match=reason):
            list(row_groups(path, column, rows=1))
    with pytest.raises(InputError, match="no column of bytes"):
        list(row_groups(write_rows(tmp_path / "n.parquet", {"n": [1]}), None, rows=1))


def test_rows_that_cannot_be_read_are_one_fault_and_a_file_that_is_no_parquet_an_error(tmp_path: Path) -> None:
    path = Path(write_rows(tmp_path / "r.parquet", {"image": [bytes([number]) * 50 for number in range(6)]}))
    data = bytearray(path.read_bytes())
    end = data.index(bytes([3]) * 20)
    data[end - 40 : end] = b"\xff" * 40  # the second row group's page header
    path.write_bytes(bytes(data))
    (groups,) = row_groups(str(path), None, rows=100)
    items = list(row_items(groups, MAX_BYTES))
    assert codes(items)[-1] == "bad_rows"
    assert len(items) <= 4
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"r\.parquet cannot be read as Parquet"):
        list(row_groups(str(path), None, rows=100))
