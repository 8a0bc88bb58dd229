"""A NumPy archive of more rows than memory holds, put in place whole.

Rows arrive one image at a time and the archive has its arrays one after another, so that each output's rows go to a
file of their own first, in a folder beside the archive; at the end they are copied behind their headers, and the
archive takes its place by one rename. Until then a file that was there before is untouched. It needs the rows' room
on the disk twice for a while, and no memory but for the paths.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

_COPIED_BYTES = 1 << 20
_PATHS_AT_A_TIME = 4096
PATH = "path"
"""The array of the images' paths, one a row."""


class ArchiveWriter:
    """Takes rows until `finish`; a context manager that leaves nothing behind but what was finished."""

    def __init__(self, out: Path, outputs: Sequence[str]) -> None:
        if PATH in outputs:
            raise ValueError(f"an output cannot be named {PATH!r}")
        self._out = out
        self._outputs = tuple(outputs)
        self._paths: list[str] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._open = ExitStack()

    def __enter__(self) -> ArchiveWriter:
        folder = self._open.enter_context(TemporaryDirectory(prefix=f".{self._out.name}.", dir=self._out.parent))
        self._folder = Path(folder)
        for name in self._outputs:
            self._files[name] = self._open.enter_context((self._folder / name).open("w+b"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self._paths)

    def add(self, path: str, outputs: Mapping[str, NDArray[np.float32]]) -> None:
        """Add one row; raises ValueError where an output has another shape than in the first."""
        for name in self._outputs:
            shape = self._shapes.setdefault(name, outputs[name].shape)
            if outputs[name].shape != shape:
                raise ValueError(f"{name} of {path} has the shape {outputs[name].shape}, not {shape}")
        for name in self._outputs:
            self._files[name].write(np.ascontiguousarray(outputs[name], "<f4").tobytes())
        self._paths.append(path)

    def finish(self) -> None:
        """Put the archive in place; nothing is written where there are no rows."""
        if not self._paths:
            return
        whole = self._folder / "whole.npz"
        with zipfile.ZipFile(whole, "w", allowZip64=True) as archive:
            # Paths are alike and have four bytes a character there: they are packed. Packing numbers would gain little.
            packed = zipfile.ZipInfo(f"{PATH}.npy")
            packed.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(packed, "w", force_zip64=True) as member:
                self._write_paths(member)
            for name in self._outputs:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    self._copy(name, member)
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        whole.replace(self._out)

    def _write_paths(self, member: IO[bytes]) -> None:
        dtype = np.dtype(f"<U{max(map(len, self._paths))}")
        np.lib.format.write_array_header_1_0(
            member, {"descr": dtype.str, "fortran_order": False, "shape": (self.rows,)}
        )
        for start in range(0, self.rows, _PATHS_AT_A_TIME):
            member.write(np.array(self._paths[start : start + _PATHS_AT_A_TIME], dtype).tobytes())

    def _copy(self, name: str, member: IO[bytes]) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *self._shapes[name])}
        np.lib.format.write_array_header_1_0(member, header)
        rows = self._files[name]
        rows.seek(0)
        shutil.copyfileobj(rows, member, _COPIED_BYTES)
