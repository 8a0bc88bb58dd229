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
from operators.build import BuildError, build, compiler

_PACKAGE = "dat_operators"


def check_library() -> None:
    """Raise ExportError where there is neither the package nor a C compiler, without compiling anything."""
    if _is_installed():
        return
    try:
        compiler()
    except BuildError as error:
        raise _missing(error) from error


@contextmanager
def operator_library() -> Iterator[Path]:
    """Give the library's path: that of the installed package, or else one that is compiled for as long as the block.

    Raises ExportError where the package is of another version, and where there is neither it nor a C compiler.
    """
    if _is_installed():
        yield _installed()
        return
    with tempfile.TemporaryDirectory(prefix="dat-operators-") as folder:
        try:
            built = build(Path(folder) / "libdat_operators.so")
        except BuildError as error:
            raise _missing(error) from error
        yield built


def _is_installed() -> bool:
    return importlib.util.find_spec(_PACKAGE) is not None


def _installed() -> Path:
    package = importlib.import_module(_PACKAGE)
    if package.VERSION != VERSION:
        raise ExportError(
            f"the installed {_PACKAGE} has version {package.VERSION} of the operators, and a fused graph is of version "
            f"{VERSION}: install that, or none, for the library to be compiled"
        )
    return Path(package.library())


def _missing(error: BuildError) -> ExportError:
    return ExportError(
        f"a fused graph is verified by the library of its operators, which is not installed ({_PACKAGE}) and cannot be "
        f"compiled: {error}"
    )
