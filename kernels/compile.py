"""Compiles kernels ahead of time, without a GPU, and reports what the assembler says of them.

A folder gets, for every specialisation and target, a cubin and the PTX that it was assembled from, and one
`index.json` that says how each is launched. A cubin runs on its target and on later devices of the same major version;
PTX for sm_89 and below is what the driver compiles for devices that are newer, whereas that for sm_90 uses sm_90a's own
instructions and is for nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from kernels.grids import Axis, grid_of, is_choice
from kernels.table import Specialization

TARGETS = (80, 86, 89, 90)
"""Compute capabilities times ten: A100, A10, L4 and L40, H100 and H200."""
WARP_THREADS = 32
ALIGNMENT_BYTES = 16
"""What every tensor's address is a multiple of; ONNX Runtime's allocations are multiples of 256."""
SCRATCH = {"global_scratch": "*i8", "profile_scratch": "*i8"}
"""What Triton adds to a kernel's parameters. Both are null where the sizes in the index are 0, as they are here."""
INDEX = "index.json"


class CompileError(RuntimeError):
    """What Triton or its assembler made is not what the index could describe; the message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One kernel for one target, as the index has it; `cubin` and `ptx` are names of files beside it.

    `choices` are the constants that say how it computes and not what; `assembler` is the version of CUDA, as 12.8, that
    the cubin's assembler is from, and from which drivers compile the PTX.
    """

    kernel: str
    target: int
    entry: str
    cubin: str
    ptx: str
    assembler: str
    parameters: dict[str, str]
    constants: dict[str, int | bool]
    choices: list[str]
    grid: tuple[Axis, ...]
    num_warps: int
    shared_bytes: int
    cubin_bytes: int
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int


def compile_one(specialization: Specialization, target: int, folder: Path) -> Compiled:
    """Compile for `target`, a capability such as 80, and write cubin and PTX into `folder`.

    Raises CompileError, and what Triton raises where a kernel cannot be compiled.
    """
    if triton.knobs.runtime.interpret:
        raise CompileError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    built = _build(specialization, target)
    parameters = specialization.kernel.parameters | SCRATCH
    ptx, cubin = built.asm["ptx"], built.asm["cubin"]
    taken = len(re.findall(r"^\s*\.param ", ptx, re.MULTILINE))
    if taken != len(parameters):
        raise CompileError(f"{specialization.name}: the entry takes {taken} parameters, not {len(parameters)}")
    if built.metadata.global_scratch_size or built.metadata.profile_scratch_size:
        raise CompileError(f"{specialization.name}: it needs scratch memory, which no launcher would give it")
    stem = f"{specialization.name}.sm_{target}"
    (folder / f"{stem}.cubin").write_bytes(cubin)
    (folder / f"{stem}.ptx").write_text(ptx)
    return Compiled(
        kernel=specialization.kernel.name,
        target=target,
        entry=built.metadata.name,
        cubin=f"{stem}.cubin",
        ptx=f"{stem}.ptx",
        assembler=get_ptxas(target).version,
        parameters=parameters,
        constants=specialization.constants,
        choices=[name for name in specialization.constants if is_choice(name)],
        grid=grid_of(specialization.kernel.name, specialization.constants),
        num_warps=built.metadata.num_warps,
        shared_bytes=built.metadata.shared,
        cubin_bytes=len(cubin),
        **assembler_report(folder / f"{stem}.ptx", target),
    )


def _build(specialization: Specialization, target: int) -> Any:
    function, parameters = specialization.kernel.function, specialization.kernel.parameters
    constants = specialization.constants
    if [*parameters, *constants] != list(function.arg_names):
        raise CompileError(f"{specialization.name}: the table's arguments are not those of the kernel, in order")
    signature = parameters | dict.fromkeys(constants, "constexpr")
    aligned = {
        (index,): [["tt.divisibility", ALIGNMENT_BYTES]]
        for index, kind in enumerate(parameters.values())
        if kind.startswith("*")
    }
    source = ASTSource(function, signature, constants, aligned)
    options = {"num_warps": specialization.num_warps}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # for debuggers only, and half of a cubin
        return triton.compile(source, target=GPUTarget("cuda", target, WARP_THREADS), options=options)


def assembler_report(ptx: Path, target: int) -> dict[str, int]:
    """Return the registers of a thread and its spilled bytes, which only the assembler knows and Triton drops."""
    assembler = get_ptxas(target).path
    (architecture,) = re.findall(r"^\.target (\w+)", ptx.read_text(), re.MULTILINE)
    with TemporaryDirectory() as scratch:
        command = [assembler, "-v", f"--gpu-name={architecture}", str(ptx), "-o", f"{scratch}/out.cubin"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr  # noqa: S603  Triton's own
    found = {
        "registers": re.search(r"Used (\d+) registers", told),
        "spill_store_bytes": re.search(r"(\d+) bytes spill stores", told),
        "spill_load_bytes": re.search(r"(\d+) bytes spill loads", told),
    }
    if missing := [name for name, match in found.items() if match is None]:
        raise CompileError(f"the assembler said nothing of {', '.join(missing)}: {told}")
    return {name: int(match[1]) for name, match in found.items() if match is not None}


def compile_all(wanted: Sequence[Specialization], targets: Sequence[int], folder: Path) -> list[Compiled]:
    """Compile each for each target into `folder`, which is made, and write the index when all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    compiled = [compile_one(one, target, folder) for one in wanted for target in targets]
    write_index(compiled, folder)
    return compiled


def write_index(compiled: Sequence[Compiled], folder: Path) -> None:
    """Write how each kernel of the folder is launched; `scratch` names the parameters that are null."""
    index = {"triton": triton.__version__, "scratch": list(SCRATCH), "kernels": [asdict(one) for one in compiled]}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def table(compiled: Sequence[Compiled]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| kernel | constants | target | cubin bytes | registers | spilled bytes, stored/loaded | shared bytes |"]
    lines.append("|---|---|---|---|---|---|---|")
    for one in compiled:
        constants = " ".join(f"{name}={int(value)}" for name, value in one.constants.items())
        spilled = f"{one.spill_store_bytes}/{one.spill_load_bytes}"
        cells = (one.kernel, constants, f"sm_{one.target}", one.cubin_bytes, one.registers, spilled, one.shared_bytes)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
