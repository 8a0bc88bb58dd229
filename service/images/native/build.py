"""Compiling the library with the machine's C compiler, which $CC names; `cc` otherwise."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from service.images.native import LIBRARY, SOURCE

# Contracted products and sums round once where Pillow rounds twice.
_FLAGS: Final = (
    *("-std=gnu11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    *("-fvisibility=hidden", "-shared", "-fPIC"),
)


class BuildError(Exception):
    """The library could not be built; the message says what is missing, or what the compiler said."""


def compiler() -> list[str]:
    """Return the command of the C compiler; raises BuildError where there is none."""
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        raise BuildError(f"there is no C compiler {' '.join(command)!r}; install one, or name it by CC")
    return command


def build(path: Path = LIBRARY, *, flags: Sequence[str] = ()) -> Path:
    """Compile the library to `path`, which is replaced at once, and return it; raises BuildError."""
    command = compiler()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        asked = [*command, *_FLAGS, *flags, str(SOURCE), "-o", str(made), "-lm"]
        compiled = subprocess.run(asked, capture_output=True, text=True, check=False)
        if compiled.returncode:
            raise BuildError(f"{command[0]} could not compile {SOURCE.name}:\n{compiled.stderr.strip()}")
        made.replace(path)  # a process that has the old one loaded keeps it
    return path
