"""Weight files by what is in them, whatever their names: to the object that they hold, or to what they are instead.

Nothing in a file is executed: `models.pickled` makes data alone, NumPy reads arrays without pickles, and safetensors
has nothing but tensors.
"""

from __future__ import annotations

import codecs
import html
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import safetensors
import safetensors.torch

from models.pickled import OLD_TORCH_MAGIC, ProgramInPickle, archive_root, read_archive, read_stream

_HEAD_BYTES: Final = 4096
_LENGTH_BYTES: Final = 8
_MAX_SAFETENSORS_HEADER_BYTES: Final = 100_000_000
_SHOWN_NAMES: Final = 5
_SHOWN_CHARACTERS: Final = 200

_ZIP: Final = b"PK\x03\x04"
_PICKLES: Final = (b"\x80", b"(d", b"}q", b"ccollections\n", f"L{OLD_TORCH_MAGIC}L".encode())
"""How a pickle of any protocol begins that has a dictionary in it."""
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"(\xb5/\xfd": "Zstandard",
    b"7z\xbc\xaf'\x1c": "7-Zip",
    b"Rar!": "RAR",
}
_OTHERS: Final = {
    b"version https://git-lfs": "a Git LFS pointer, not weights: fetch the file itself with `git lfs pull`",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras and TensorFlow write, not weights of a torch model",
    b"GGUF": "a GGUF file of a language model, not weights of a torch model",
    b"\x93NUMPY": "a single NumPy array, not named weights",
    b"\x89PNG": "a PNG image, not weights",
    b"\xff\xd8\xff": "a JPEG image, not weights",
    b"%PDF": "a PDF document, not weights",
    b"\x7fELF": "a program, not weights",
}


class CheckpointError(ValueError):
    """A weight file that cannot be read, or does not fit; the message begins with the likely cause.

    It is one line that can be shown anywhere: what a file has for names may hold control characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))


def read_weight_file(path: Path) -> Any:
    """Return the object in a weight file: mostly a mapping of names to tensors, or of such mappings.

    Files of torch.save of any age, plain pickles, archives of NumPy arrays and safetensors are read. Raises
    CheckpointError that says what the file is where it is none of them, or is damaged.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; name the weight file in it")
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(path: Path, file: IO[bytes]) -> Any:
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if not head.strip(b"\x00"):
        raise CheckpointError(f"{path} is empty" if not head else f"{path} begins with nothing but zeros: copy it anew")
    if head.startswith(_ZIP):
        return _read_zip(path, file)
    if _is_safetensors(head):
        return _read_safetensors(path)
    if not head.startswith(_PICKLES):
        raise CheckpointError(f"{path} {_description(head)}")
    try:
        return read_stream(file)
    except ProgramInPickle as error:
        raise _refusal(path, error) from error
    except Exception as error:  # a damaged pickle ends in whatever its bytes happen to ask for
        raise CheckpointError(f"{path} begins like a pickle and is damaged or cut off: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"it has no record {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


def _refusal(path: Path, error: ProgramInPickle) -> CheckpointError:
    return CheckpointError(f"{path} was refused: it holds more than data: it would call {error}")


def _read_zip(path: Path, file: IO[bytes]) -> Any:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is cut off: the end of its archive is missing; download or copy it anew"
        ) from error
    with archive:
        names = archive.namelist()
        if any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                f"{path} is a TorchScript archive, which holds a program; give the state dict that it was made from"
            )
        if archive_root(archive) is not None:
            return _read_torch_archive(path, archive)
        if names and all(name.endswith(".npy") for name in names):
            return _read_arrays(path, file)
    raise CheckpointError(f"{path} is a zip archive without weights of torch; it holds: {listed(names)}")


def _read_torch_archive(path: Path, archive: zipfile.ZipFile) -> Any:
    try:
        return read_archive(archive)
    except ProgramInPickle as error:
        raise _refusal(path, error) from error
    except Exception as error:  # a damaged pickle ends in whatever its bytes happen to ask for
        raise CheckpointError(f"{path} is a damaged archive of torch.save: {_reason(error)}") from error


def _read_arrays(path: Path, file: IO[bytes]) -> Any:
    file.seek(0)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is a NumPy archive that cannot be read: {error}") from error


def _is_safetensors(head: bytes) -> bool:
    header_bytes = int.from_bytes(head[:_LENGTH_BYTES], "little")
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and 2 <= header_bytes <= _MAX_SAFETENSORS_HEADER_BYTES


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is a safetensors file that is damaged or cut off: {error}") from error


def _description(head: bytes) -> str:
    """Return what a file is that is no weight file, by its first bytes."""
    for magic, kind in _OTHERS.items():
        if head.startswith(magic):
            return f"is {kind}"
    for magic, packer in _PACKED.items():
        if head.startswith(magic):
            return f"is packed by {packer}: unpack it, and give the weight file that is in it"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it, and give the weight file that is in it"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        return "looks like an ONNX graph; give the weights that it was made from"
    text = _text(head)
    if text is not None:
        return _description_of_text(text)
    return (
        f"is no weight file: it begins with {head[:8].hex(' ')}, unlike files of torch.save, pickles, NumPy archives "
        "and safetensors"
    )


def _text(head: bytes) -> str | None:
    """Return the beginning of a text, None where the file is none."""
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character in "\t\r\n\f" for character in text) else None


def _description_of_text(text: str) -> str:
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body", "<script", "<!--")):
        title = re.search(r"<title[^>]*>\s*([^<]*?)\s*<", text, re.IGNORECASE)
        titled = f", titled {html.unescape(title[1])!r}" if title and title[1] else ""
        return f"is a web page{titled}, not weights: the download was answered with a page; download it by hand"
    if start.startswith("<"):
        return "is an XML document, not weights: a download may have been answered with an error; download it anew"
    if start.startswith(("{", "[")):
        return "is JSON, not weights: give the file of tensors that lies beside it, or download it anew"
    lines = text.strip().splitlines()
    return f"is a text that begins with {lines[0][:60]!r}, not weights" if lines else "is a text of blanks, not weights"


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and how many there are beyond."""
    more = len(names) - _SHOWN_NAMES
    shown = [
        name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names[:_SHOWN_NAMES]
    ]
    return ", ".join(shown or ["none"]) + (f" and {more} more" if more > 0 else "")
