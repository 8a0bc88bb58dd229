"""`python -m operators.wheel --output FOLDER`: build the library as a wheel, `dat-operators`, and print its path.

The wheel needs nothing but Python: who installs it has neither a compiler nor Triton. It is for machines like the one
that builds it, with its C library or a later one.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from operators.build import BuildError, add_kernel_options, build_as_given
from operators.embed import EmbedError

PACKAGE: Final = Path(__file__).parent / "package"
LIBRARY: Final = Path("dat_operators") / "libdat_operators.so"
_LICENSE: Final = Path(__file__).parents[1] / "LICENSE"


def build_wheel(build_library: Callable[[Path], object], output: Path) -> Path:
    """Build a wheel of the library that `build_library` makes at a path into the folder `output`; return it.

    pip builds it, with the setuptools of this environment and without the network. Raises BuildError where it cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        project, wheels = Path(folder) / "project", Path(folder) / "wheels"
        shutil.copytree(PACKAGE, project, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(_LICENSE, project)
        build_library(project / LIBRARY)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-index", "--no-build-isolation", "--wheel-dir", str(wheels), str(project)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise BuildError(f"pip could not build the wheel:\n{built.stderr.strip()}")
        (wheel,) = wheels.iterdir()
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, output / wheel.name))


def main(argv: Sequence[str] | None = None) -> int:
    """Build; 1 where that fails, with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m operators.wheel", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the wheel")
    add_kernel_options(parser)
    given = parser.parse_args(argv)
    try:
        print(build_wheel(lambda path: build_as_given(path, given), given.output))
    except (BuildError, EmbedError, OSError) as error:
        print(f"operators: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
