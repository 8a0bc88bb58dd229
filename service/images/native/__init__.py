"""The bicubic resize in C: its source, how it is compiled, and where the library is. `service.images.bicubic` calls it.

    python -m service.images.native        # compiles it beside its source, where the service looks for it

Nothing but Python's own library is needed for that, and a C compiler. Without the library Pillow resizes.
"""

from pathlib import Path

SOURCE = Path(__file__).with_name("bicubic.c")
LIBRARY = Path(__file__).with_name("libdat_bicubic.so")
