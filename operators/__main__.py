"""`python -m operators [PATH]`: build the library, and print where it is; with --kernels, for NVIDIA's GPUs too."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from operators.build import BuildError, add_kernel_options, build_as_given, library_path
from operators.embed import EmbedError


def main(argv: Sequence[str] | None = None) -> int:
    """Build; 1 where that fails, with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m operators", description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=library_path())
    add_kernel_options(parser)
    given = parser.parse_args(argv)
    try:
        print(build_as_given(given.path, given))
    except (BuildError, EmbedError, OSError) as error:
        print(f"operators: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
