"""Compiling the library with the machine's C compiler, which $CC names; `cc` otherwise."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from operators.embed import compile_kernels, write_sources

_HERE = Path(__file__).parent
SOURCES: Final = tuple(sorted((_HERE / "src").glob("*.c")))
_FLAGS: Final = ("-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-shared", "-fPIC")
_INCLUDED: Final = (f"-I{_HERE / 'third_party' / 'onnxruntime'}", f"-I{_HERE / 'src'}")
_LINKED: Final = ("-lm", "-ldl", "-pthread")


class BuildError(Exception):
    """The library could not be built; the message says what is missing, or what the compiler said."""


def library_path() -> Path:
    """Return where the library is once it is built."""
    return Path("build") / "operators" / "libdat_operators.so"


def compiler() -> list[str]:
    """Return the command of the C compiler; raises BuildError where there is none."""
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        raise BuildError(f"there is no C compiler {' '.join(command)!r}; install one, or name it by CC")
    return command


def build(path: Path, compiled: Path | None = None) -> Path:
    """Compile the library to `path`, which is replaced at once, and return it.

    The kernels of the folder `compiled`, which `python -m kernels` wrote, become part of it; without one it has none
    for GPUs. Raises BuildError, and EmbedError where that folder is not what it should be.
    """
    command = compiler()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        sources = [*SOURCES, *write_sources(compiled, Path(folder))]
        asked = [*command, *_FLAGS, *_INCLUDED, *map(str, sources), "-o", str(made), *_LINKED]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{command[0]} could not compile the operators:\n{done.stderr.strip()}")
        made.replace(path)  # a process that has the old one loaded keeps it
    return path


def add_kernel_options(parser: argparse.ArgumentParser) -> None:
    """Let a command choose the kernels that are built in: none, variants', or compiled ones."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--kernels",
        nargs="*",
        metavar="VARIANT",
        help="build in the kernels of these variants, or of all; wants Triton",
    )
    choice.add_argument("--compiled", type=Path, metavar="FOLDER", help="build in what `python -m kernels` left there")


def build_as_given(path: Path, given: argparse.Namespace) -> Path:
    """Build with the kernels that the options ask for; raises as `build` does."""
    if given.kernels is None:
        return build(path, given.compiled)
    compiler()  # before what takes minutes
    with tempfile.TemporaryDirectory() as folder:
        compile_kernels(given.kernels, Path(folder))
        return build(path, Path(folder))
