"""`python -m operators [PATH]`: build the library, and print where it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from operators.build import BuildError, build, library_path


def main(argv: Sequence[str] | None = None) -> int:
    """Build; 1 where that fails, with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m operators", description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=library_path())
    try:
        print(build(parser.parse_args(argv).path))
    except (BuildError, OSError) as error:
        print(f"operators: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
