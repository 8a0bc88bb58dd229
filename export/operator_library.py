"""The library of the operators of the domain `dat`, by which their graphs are verified on the CPU."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.errors import ExportError
from operators import VERSION
from operators.build import BuildError, build

_PACKAGE = "dat_operators"


@contextmanager
def operator_library() -> Iterator[Path]:
    """Give the library's path: that of the installed package, or else one that is compiled for as long as the block.

    Raises ExportError where the package is of another version, and where there is neither it nor a C compiler.
    """
    if importlib.util.find_spec(_PACKAGE) is not None:
        installed = importlib.import_module(_PACKAGE)
        if installed.VERSION != VERSION:
            raise ExportError(
                f"the installed {_PACKAGE} has version {installed.VERSION} of the operators, and a fused graph is of "
                f"version {VERSION}: install that, or none, for the library to be compiled"
            )
        yield Path(installed.library())
        return
    with tempfile.TemporaryDirectory(prefix="dat-operators-") as folder:
        yield _built(Path(folder) / "libdat_operators.so")


def _built(path: Path) -> Path:
    try:
        return build(path)
    except BuildError as error:
        raise ExportError(
            f"a fused graph is verified by the library of its operators, which is not installed ({_PACKAGE}) and "
            f"cannot be compiled: {error}"
        ) from error
