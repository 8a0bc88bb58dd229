"""Compiling the library with the machine's C compiler, which $CC names; `cc` otherwise."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_HERE = Path(__file__).parent
SOURCES: Final = tuple(sorted((_HERE / "src").glob("*.c")))
_FLAGS: Final = ("-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-shared", "-fPIC")
_HEADERS: Final = _HERE / "third_party" / "onnxruntime"


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


def build(path: Path) -> Path:
    """Compile the library to `path`, which is replaced at once, and return it; raises BuildError."""
    command = compiler()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        asked = [*command, *_FLAGS, f"-I{_HEADERS}", *map(str, SOURCES), "-o", str(made), "-lm", "-pthread"]
        compiled = subprocess.run(asked, capture_output=True, text=True, check=False)
        if compiled.returncode:
            raise BuildError(f"{command[0]} could not compile the operators:\n{compiled.stderr.strip()}")
        made.replace(path)  # a process that has the old one loaded keeps it
    return path
