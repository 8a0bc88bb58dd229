"""Each room says what it imports: its `__init__` is held to the imports of its modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import service

SERVICE = Path(service.__file__).parent
ROOMS = sorted(path.parent.relative_to(SERVICE) for path in SERVICE.rglob("*/__init__.py"))


def imported_modules(file: Path) -> Iterator[str]:
    """Yield what a module imports, as far as it can be a module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{each.name}" for each in node.names)


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_rooms_say_what_they_import(room: Path) -> None:
    own = ".".join(("service", *room.parts))
    modules = {module for file in (SERVICE / room).glob("*.py") for module in imported_modules(file)}
    others = {module for module in modules if module.startswith("service.") and not f"{module}.".startswith(f"{own}.")}
    docstring = ast.get_docstring(ast.parse((SERVICE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    said = re.findall(r"`(\w+)`", docstring.rpartition("Imports: ")[2])
    assert said == sorted({module.split(".")[1] for module in others} - {"VERSION"})
