"""`python -m service.images.native`: compile the library, and print where it is."""

from __future__ import annotations

import sys

from service.images.native.build import BuildError, build


def main() -> int:
    """Build; 1 where that fails, with the reason on standard error."""
    try:
        print(build())
    except (BuildError, OSError) as error:
        print(f"native: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
