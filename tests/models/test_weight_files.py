"""Weight files as they come: any form and age gives the same tensors, objects beside them stay inert, and what is no
weight file is called what it is."""

from __future__ import annotations

import argparse
import bz2
import collections
import datetime
import decimal
import enum
import functools
import gzip
import io
import lzma
import operator
import os
import pathlib
import pickle
import random
import re
import tarfile
import types
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from models import weight_search
from models.checkpoint import CheckpointError, read_weights

WEIGHTS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.tensor([1.0, -2.0], dtype=torch.float64),
    "b": torch.arange(6.0).reshape(2, 3).t(),
    "none": torch.zeros(0, 3),
    "scalar": torch.tensor(3, dtype=torch.int64),
}


class Colour(enum.Enum):
    RED = 1


class Options:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Settings(dict):
    pass


class Names(list):
    pass


Best = collections.namedtuple("Best", "epoch accuracy")

BESIDE: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("/out")),
    "windows path": pathlib.PureWindowsPath("c:/out"),
    "simple namespace": types.SimpleNamespace(a=1),
    "options": Options(a=Options(b=[1, 2])),
    "dictionary of another class": Settings(a=Settings(b=1)),
    "list of another class": Names(["a", "b"]),
    "named tuple": Best(3, 0.5),
    "enum": Colour.RED,
    "times": (datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1)),
    "collections": (collections.defaultdict(list, a=[1]), collections.Counter("aab"), collections.deque([1, 2])),
    "sets": ({1, 2}, frozenset("ab")),
    "numbers": (decimal.Decimal("1.5"), 2**200, 1j, uuid.UUID(int=5)),
    "bytes": (b"\x00\xff", bytearray(b"ab")),
    "pattern": re.compile("a+"),
    "partial": functools.partial(sorted, reverse=True),
    "getter": operator.itemgetter(1),
    "function": len,
    "bound method": "x".upper,
    "class": Options,
    "slice": slice(1, 2),
    "numpy scalars": (np.float32(1), np.int64(2), np.bool_(True), np.float64(3)),
    "numpy arrays": (np.zeros(3), np.ones((2, 2), ">i4"), np.array(["a", "b"]), np.array([{}, None], dtype=object)),
    "numpy random state": np.random.get_state(),
    "numpy generator": np.random.default_rng(0),
    "python random state": random.getstate(),
    "python generator": random.Random(3),
    "torch random state": torch.get_rng_state(),
    "torch things": (torch.device("cpu"), torch.float16, torch.Size([1, 2]), torch.strided),
    "sparse tensor": torch.eye(3).to_sparse(),
}


def save(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def dump(content: Any, path: Path, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def assert_weights(found: dict[str, Any], prefix: str = "") -> None:
    for name, expected in WEIGHTS.items():
        value = found[prefix + name]
        value = (
            value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(getattr(value, "values", value)))
        )
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_objects_beside_the_weights_are_passed_over(name: str, zipped: bool, protocol: int, tmp_path: Path) -> None:
    content = {"first": BESIDE[name], "model": WEIGHTS, name: BESIDE[name]}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    assert_weights(read_weights(save(content, tmp_path / "w.pth", **options)), "model.")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_arrays_and_of_tensors_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in WEIGHTS.items()}
    assert_weights(
        read_weights(dump({"model": arrays, "args": BESIDE["namespace"]}, tmp_path / "a.pkl", protocol)), "model."
    )
    assert_weights(read_weights(dump(WEIGHTS, tmp_path / "t.pkl", protocol)))


def test_the_oldest_files_of_torch_are_read(tmp_path: Path) -> None:
    for protocol in (1, 2):
        options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
        assert_weights(read_weights(save(WEIGHTS, tmp_path / "w.pth", **options)))


def test_big_endian_numbers_are_read(tmp_path: Path) -> None:
    arrays = {name: value.numpy().astype(value.numpy().dtype.newbyteorder(">")) for name, value in WEIGHTS.items()}
    found = read_weights(dump(arrays, tmp_path / "a.pkl", 4))
    assert np.array_equal(found["a.weight"].values, WEIGHTS["a.weight"].numpy())
    path = save(WEIGHTS, tmp_path / "w.pth")
    swapped = tmp_path / "swapped.pth"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(swapped, "w") as after:
        for record in before.namelist():
            data = before.read(record)
            if record.endswith("byteorder"):
                data = b"big"
            elif "/data/" in record and len(data) % 8 == 0:
                width = 8 if len(data) in (8, 16) else 4
                data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
            after.writestr(record, data)
    assert_weights(read_weights(swapped))


def test_an_archive_may_be_packed_anew_or_be_without_checksums(tmp_path: Path) -> None:
    path = save(WEIGHTS, tmp_path / "w.pth")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as after:
        for record in before.namelist():
            after.writestr(record, before.read(record))
    assert_weights(read_weights(tmp_path / "p.pth"))
    torch.serialization.set_crc32_options(False)
    try:
        path = save(WEIGHTS, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_weights(read_weights(path))


def test_arrays_and_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    with (tmp_path / "arrays.bin").open("wb") as file:
        np.savez(file, **{name: value.numpy() for name, value in WEIGHTS.items()})
    assert_weights(read_weights(tmp_path / "arrays.bin"))
    safetensors.torch.save_file({name: value.contiguous() for name, value in WEIGHTS.items()}, tmp_path / "s.bin")
    assert_weights(read_weights(tmp_path / "s.bin"))
    (tmp_path / "p.safetensors").write_bytes(save(WEIGHTS, tmp_path / "w.pth").read_bytes())
    assert_weights(read_weights(tmp_path / "p.safetensors"))


@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensors_of_a_pickled_module_have_their_names(zipped: bool, tmp_path: Path) -> None:
    module = torch.nn.Sequential(collections.OrderedDict(one=torch.nn.Linear(2, 3), two=torch.nn.BatchNorm1d(3)))
    path = save({"net": torch.nn.DataParallel(module)}, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    assert found.keys() >= {f"net.module.{name}" for name in module.state_dict()}
    assert torch.equal(found["net.module.one.weight"], module.one.weight.detach())


def test_other_classes_that_hold_weights_are_looked_into(tmp_path: Path) -> None:
    for content, prefix in [
        (Settings(WEIGHTS), ""),
        (Options(ema=Options(module=WEIGHTS)), "ema.module."),
        (Best(WEIGHTS, 3), "0."),
        (collections.defaultdict(int, WEIGHTS), ""),
    ]:
        assert_weights(read_weights(save(content, tmp_path / "w.pth")), prefix)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call

    def __call__(self) -> None:
        """Be what a pickle may call, which another call gives."""


def touch(path: str) -> None:
    Path(path).touch()


def hostile(proof: str) -> dict[str, Any]:
    return {
        "system": Calls(os.system, f"touch {proof}"),
        "eval": Calls(eval, f"__import__('os').system('touch {proof}')"),
        "exec": Calls(exec, f"open({proof!r}, 'w')"),
        "open": Calls(open, proof, "w"),
        "own function": Calls(touch, proof),
        "looked up": Calls(Calls(getattr, Calls(__import__, "os"), "system"), f"touch {proof}"),  # type: ignore[arg-type]
        "method of a path": Calls(pathlib.Path.touch, pathlib.Path(proof)),
        "partial": Calls(functools.partial(touch), proof),
        "reader": Calls(pickle.loads, pickle.dumps(Calls(touch, proof))),
        "torch's reader": Calls(torch.load, io.BytesIO(b""), None),
        "numpy's reader": Calls(np.load, proof),
    }


REFUSED = {"system", "eval", "exec", "open", "looked up", "reader"}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", hostile(""))
def test_nothing_in_a_pickle_is_executed(name: str, zipped: bool, protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    content = {"model": WEIGHTS, "evil": hostile(str(proof))[name]}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    path = save(content, tmp_path / "w.pth", **options)
    if name in REFUSED:
        with pytest.raises(CheckpointError, match="more than data"):
            read_weights(path)
    else:
        assert_weights(read_weights(path), "model.")
    assert not proof.exists()


def program(*opcodes: bytes) -> bytes:
    return b"\x80\x02" + b"".join(opcodes) + b"."


@pytest.mark.parametrize(
    "name",
    [
        "torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "numpy.core.multiarray\n_reconstruct",
        "numpy\ndtype", "torch\nFloatStorage", "torch\nSize", "_codecs\nencode", "any\nThing",
    ],
)  # fmt: skip
def test_a_pickle_cannot_alter_what_it_is_read_with(name: str, tmp_path: Path) -> None:
    set_attributes = b"N}U\x0c__defaults__)s\x86b"  # BUILD with slots: setattr(it, "__defaults__", ())
    path = tmp_path / "w.pkl"
    path.write_bytes(program(b"c", name.encode(), b"\n", set_attributes))
    with pytest.raises(CheckpointError):
        read_weights(path)
    assert_weights(read_weights(save({"m": WEIGHTS, "x": BESIDE["numpy arrays"]}, tmp_path / "w.pth")), "m.")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_view_beyond_its_numbers_is_refused(tmp_path: Path) -> None:
    class Wide:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.zeros(2).storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (1000,), (1,), False, collections.OrderedDict())

    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(save({"w": Wide()}, tmp_path / "w.pth"))


def test_containers_within_themselves_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_search, "_MAX_ENTRIES", 10_000)
    content: dict[str, Any] = {"model": WEIGHTS}
    content["self"] = content
    assert_weights(read_weights(dump(content, tmp_path / "w.pkl", 4)), "model.")
    bomb: list[Any] = [torch.zeros(1)]
    for _ in range(40):
        bomb = [bomb] * 10
    with pytest.raises(CheckpointError, match="without end"):
        read_weights(dump({"a": bomb}, tmp_path / "w.pkl", 4))


def tar_of(data: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"), io.BytesIO(data))
    return packed.getvalue()


def zip_of(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return packed.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 115\n"

OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty$"),
    "zeros": (bytes(9000), "nothing but zeros"),
    "git lfs": (LFS, "is a Git LFS pointer, not weights: .*git lfs pull"),
    "page": (
        b"<!DOCTYPE html><html><title>Quota &amp; limits</title></html>",
        "is a web page, titled 'Quota & limits'",
    ),
    "page with blanks": (b"\xef\xbb\xbf\r\n  <HTML lang=en>", "is a web page, not weights"),
    "page of windows": ("<html><title>Sign in</title>".encode("utf-16"), "is a web page, titled 'Sign in'"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "json": (b'{"metadata": {"total_size": 3}}', "JSON"),
    "text": ("Datei nicht gefunden: größe".encode(), "'Datei nicht gefunden: größe'"),
    "gzip": (gzip.compress(b"weights"), "gzip"),
    "bzip2": (bz2.compress(b"weights"), "bzip2"),
    "xz": (lzma.compress(b"weights"), r"\bxz\b"),
    "tar": (tar_of(b""), r"\btar\b"),
    "zip": (zip_of("best/model.pth", "README"), r"\bzip\b.*best/model\.pth, README"),
    "cut zip": (zip_of("archive/data.pkl")[:-30], "is cut off"),
    "torchscript": (zip_of("m/data.pkl", "m/constants.pkl", "m/code/m.py"), "TorchScript"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "onnx": (b"\x08\x0a\x12\x07pytorch\x1a\x052.1.0" + bytes(99), "ONNX"),
    "gguf": (b"GGUF\x03" + bytes(99), "GGUF"),
    "one array": (b"\x93NUMPY\x01\x00", "single NumPy array"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "PNG"),
    "noise": (bytes(range(200, 256)), "c8 c9 ca"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_no_weight_file_is_called_what_it_is(kind: str, suffix: str, tmp_path: Path) -> None:
    content, reason = OTHERS[kind]
    path = tmp_path / f"given.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_file_that_is_cut_off_is_an_error(zipped: bool, share: float, tmp_path: Path) -> None:
    path = save({"model": WEIGHTS}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"cut off|damaged"):
        read_weights(path)


def test_numbers_that_do_not_match_their_checksum_are_an_error(tmp_path: Path) -> None:
    path = save({"model": torch.arange(1000.0)}, tmp_path / "w.pth")
    data = bytearray(path.read_bytes())
    place = data.index(np.float32(500).tobytes() + np.float32(501).tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="data/0 "):
        read_weights(path)
