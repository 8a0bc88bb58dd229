"""Takes compiled kernels in: a table in C, as `src/kernels.h` declares it, and an assembler's file with their code.

`python -m kernels` leaves a folder with an index; nothing here needs Triton, or the kernels' sources.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

INDEX: Final = "index.json"
EVERY_VARIANT: Final = "all"
_TABLE, _CODE = "kernels.c", "kernels.S"
_KINDS: Final = {"i32": "INT32", "i64": "INT64", "fp32": "FLOAT32"}
_AXES: Final = 3

Row = Mapping[str, Any]
"""A kernel for one target, as the index has it."""


class EmbedError(Exception):
    """Kernels could not be compiled or taken in; the message says why."""


@dataclass(frozen=True, slots=True)
class _Image:
    row: Row
    file: Path
    is_ptx: bool


def compile_kernels(variants: Sequence[str], folder: Path) -> None:
    """Compile what these variants need (none: every variant) into `folder`, by a process that has Triton."""
    command = [sys.executable, "-m", "kernels", *(variants or [EVERY_VARIANT]), "--output", str(folder)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if compiled.returncode:
        raise EmbedError(f"the kernels could not be compiled:\n{compiled.stderr.strip()}")


def write_sources(compiled: Path | None, folder: Path) -> list[Path]:
    """Write into `folder` what takes in the kernels of the folder `compiled` (none: an empty table); return the files.

    Raises EmbedError where there are none, or where the index says what the table cannot.
    """
    kernels, scratch = ([], []) if compiled is None else _read(compiled)
    symbols = {image.file: "" for images in kernels for image in images}
    symbols = {file: f"dat_code_{number}" for number, file in enumerate(symbols)}
    table, code = folder / _TABLE, folder / _CODE
    table.write_text(_table(kernels, scratch, symbols))
    code.write_text(_code(symbols))
    return [table, code]


def _read(compiled: Path) -> tuple[list[list[_Image]], list[str]]:
    """Return the code of each kernel and its constants, and the names of parameters that are null."""
    try:
        index = json.loads((compiled / INDEX).read_text())
    except OSError as error:
        raise EmbedError(f"{compiled} holds no compiled kernels: {error}") from error
    targets: dict[str, list[Row]] = {}
    for row in index["kernels"]:
        targets.setdefault(json.dumps([row["kernel"], row["constants"]]), []).append(row)
    return [_images(rows, compiled) for rows in targets.values()], index["scratch"]


def _images(rows: Sequence[Row], compiled: Path) -> list[_Image]:
    """Return the machine code of every target, and the PTX of the latest one whose PTX is for later devices too.

    PTX that names its target with a letter at the end is for that alone.
    """
    rows = sorted(rows, key=lambda row: int(row["target"]))
    images = [_Image(row, compiled / row["cubin"], is_ptx=False) for row in rows]
    portable = [row for row in rows if _ptx_target(compiled / row["ptx"]) == f"sm_{row['target']}"]
    return images + [_Image(row, compiled / row["ptx"], is_ptx=True) for row in portable[-1:]]


def _ptx_target(ptx: Path) -> str:
    for line in ptx.read_text().splitlines():
        if line.startswith(".target "):
            return line.removeprefix(".target ").split(",")[0].strip()
    raise EmbedError(f"{ptx} does not say what it is for")


def _table(kernels: Sequence[Sequence[_Image]], scratch: Sequence[str], symbols: Mapping[Path, str]) -> str:
    parts = ["#include <stddef.h>", '#include "kernels.h"']
    parts += [f"extern const unsigned char {symbol}[];" for symbol in symbols.values()]
    rows = []
    for number, images in enumerate(kernels):
        kernel = images[0].row
        parameters = [
            f"{{{_quoted(name)}, {_kind(name, kind, scratch)}}}" for name, kind in kernel["parameters"].items()
        ]
        parts += [
            _array("static const Constant", f"constants_{number}", _constants(kernel)),
            _array("static const Parameter", f"parameters_{number}", parameters),
            f'_Static_assert({len(parameters)} <= MAX_PARAMETERS, "a kernel has too many parameters");',
            _array("static const Image", f"images_{number}", [_image(image, symbols) for image in images]),
        ]
        counts = f"{len(kernel['constants'])}, {len(parameters)}, {len(images)}"
        rows.append(
            f"{{{_quoted(kernel['kernel'])}, {counts}, constants_{number}, parameters_{number}, "
            f"{{{_grid(kernel['grid'])}}}, images_{number}}}"
        )
    parts.append(f"const int dat_specialization_count = {len(rows)};")
    parts.append(_array("const Specialization", "dat_specializations", rows or ["{0}"]))
    return "\n".join(parts) + "\n"


def _array(kind: str, name: str, rows: Sequence[str]) -> str:
    return f"{kind} {name}[] = {{\n    " + ",\n    ".join(rows) + ",\n};"


def _constants(kernel: Row) -> list[str]:
    return [
        f"{{{_quoted(name)}, {int(value)}, {_flag(name in kernel['choices'])}}}"
        for name, value in kernel["constants"].items()
    ]


def _kind(name: str, kind: str, scratch: Sequence[str]) -> str:
    if name in scratch:
        return "NOTHING"
    if kind.startswith("*"):
        return "POINTER"
    if kind not in _KINDS:
        raise EmbedError(f"a kernel's {name} is {kind}, which no launch can give")
    return _KINDS[kind]


def _grid(axes: Sequence[Row]) -> str:
    if len(axes) != _AXES:
        raise EmbedError(f"a grid of {len(axes)} axes")
    sizes = [_quoted(axis["size"]) if axis["size"] else "NULL" for axis in axes]
    return ", ".join(f"{{{size}, {axis['block']}, {axis['factor']}}}" for size, axis in zip(sizes, axes, strict=True))


def _image(image: _Image, symbols: Mapping[Path, str]) -> str:
    row = image.row
    major, minor = (int(part) for part in row["assembler"].split("."))
    code = f"{_flag(image.is_ptx)}, {_quoted(row['entry'])}, {row['num_warps']}, {row['shared_bytes']}"
    return f"{{{row['target']}, {major * 1000 + minor * 10}, {code}, {symbols[image.file]}}}"


def _code(symbols: Mapping[Path, str]) -> str:
    """Take each file in as it is, with a zero after it, by which a driver knows the end of PTX."""
    parts = [".section .rodata"]
    for file, symbol in symbols.items():
        parts += [f".balign 64\n.globl {symbol}\n.hidden {symbol}\n{symbol}:"]
        parts += [f".incbin {_quoted(str(file.resolve()))}\n.byte 0"]
    return "\n".join([*parts, '.section .note.GNU-stack, "", %progbits', ""])


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
