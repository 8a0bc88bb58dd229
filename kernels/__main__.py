"""`python -m kernels`: compiles what variants need for the GPUs that are served on; needs no GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from kernels.compile import TARGETS, compile_all, table
from kernels.table import specializations
from models.variants import VARIANTS


def main() -> None:
    """Compile, and print a table of the figures."""
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__)
    parser.add_argument("variants", nargs="*", default=["dat_tiny", "dat_pp_tiny"], help="or all; default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="folder for cubins, PTX and index.json")
    parser.add_argument("--kernel", action="append", help="only kernels of this name; may be repeated")
    parser.add_argument("--target", type=int, action="append", choices=TARGETS, help="default: all of them")
    given = parser.parse_args()
    names = list(VARIANTS) if given.variants == ["all"] else given.variants
    if unknown := sorted(set(names) - VARIANTS.keys()):
        parser.error(f"unknown variants: {', '.join(unknown)}; known are: {', '.join(VARIANTS)}")
    wanted = [one for one in specializations(names) if not given.kernel or one.kernel.name in given.kernel]
    if not wanted:
        parser.error("these variants need no kernel of that name")
    print(table(compile_all(wanted, given.target or TARGETS, given.output)))


if __name__ == "__main__":
    main()
