"""ONNX Runtime's own operators, which no other runtime has: the domain they are in."""

from typing import Final

DOMAIN: Final = "com.microsoft"
VERSION: Final = 1
