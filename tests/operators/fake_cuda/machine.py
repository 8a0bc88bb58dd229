"""Builds the stand-ins, and computes what is launched."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

from kernels import signatures
from kernels.compile import ALIGNMENT_BYTES, SCRATCH, Compiled, write_index
from kernels.grids import grid_of, is_choice
from kernels.table import Specialization
from operators.build import compiler

HERE = Path(__file__).parent
HEADERS = HERE.parents[2] / "operators/third_party/onnxruntime"
LARGE_SHARED_BYTES = 60_000
"""More than a kernel gets without asking; what fake deformable attention takes."""
CUDA_12_8, CUDA_13 = 12080, 13000
STREAM = 0x5EED
TYPES = {"*fp16": torch.float16, "*fp32": torch.float32, "*u8": torch.uint8}
SCALARS: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
KERNELS = {one.name: one for one in vars(signatures).values() if isinstance(one, signatures.Kernel)}
LAUNCHED = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, ctypes.c_uint,
    ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """What a device was asked for; `code` is what `fake_kernels` wrote."""

    code: dict[str, Any]
    entry: str
    grid: tuple[int, ...]
    threads: int
    shared_bytes: int
    stream: int | None


def fake_kernels(wanted: Sequence[Specialization], targets: Sequence[int], folder: Path) -> Path:
    """Write what `kernels.compile` writes, with code that says what it is."""
    folder.mkdir()
    rows = []
    for one in wanted:
        name = one.kernel.name
        for target in targets:
            stem = f"{one.name}.sm_{target}"
            says = {"kernel": name, "constants": one.constants, "target": target, "entry": name}
            (folder / f"{stem}.cubin").write_text(json.dumps(says))
            suffix = "a" if target >= 90 else ""
            (folder / f"{stem}.ptx").write_text(f".target sm_{target}{suffix}\n" + json.dumps(says | {"ptx": True}))
            row = Compiled(
                kernel=name, target=target, entry=name, cubin=f"{stem}.cubin", ptx=f"{stem}.ptx", assembler="12.8",
                parameters=one.kernel.parameters | SCRATCH, constants=one.constants,
                choices=[constant for constant in one.constants if is_choice(constant)],
                grid=grid_of(name, one.constants), num_warps=one.num_warps,
                shared_bytes=LARGE_SHARED_BYTES if name == "deformable_attention" else 1024,
                cubin_bytes=0, registers=0, spill_store_bytes=0, spill_load_bytes=0,
            )  # fmt: skip
            rows.append(row)
    write_index(rows, folder)
    return folder


class Machine:
    """The devices of a test, and what was launched on them."""

    def __init__(self, folder: Path) -> None:
        self.driver = ctypes.CDLL(str(_built("driver.c", folder / "libcuda.so.1", "-Wl,-soname,libcuda.so.1")))
        self.runtime_path = _built("runtime.c", folder / "libruntime.so", f"-I{HEADERS}")
        self.runtime = ctypes.CDLL(str(self.runtime_path))
        self.driver.fake_calls.restype = ctypes.c_char_p
        self.launches: list[Launch] = []
        self.failed: Exception | None = None
        self._callback = LAUNCHED(self._launched)  # as long as it may be called
        self.driver.fake_launched(self._callback)

    def is_the_processs_driver(self) -> bool:
        """Whether the library will find this driver, and not one that the process had loaded before."""
        return bool(ctypes.CDLL("libcuda.so.1")._handle == self.driver._handle)

    def start(self, *capabilities: int, version: int = CUDA_13, optin_bytes: int = 101_376) -> None:
        """Have devices of these capabilities, and none of what was before."""
        given = (ctypes.c_int * len(capabilities))(*capabilities)
        self.driver.fake_reset(version, len(capabilities), given, optin_bytes)
        self.launches.clear()
        self.failed = None

    def fail(self, call: str, error: int) -> None:
        self.driver.fake_fail(call.encode(), error)

    def calls(self) -> list[str]:
        """Return the driver's calls since this was asked, or since the start."""
        called: list[str] = self.driver.fake_calls().decode().split()
        self.driver.fake_forget_calls()
        return called

    def open(self, library: Path, graph: bytes, device: int = 0, stream: int = STREAM) -> Any:
        """Open a graph on a device; the stream is that of every session from now on."""
        self.runtime.fake_runtime(str(library).encode(), device, ctypes.c_void_p(stream))
        options = ort.SessionOptions()
        options.register_custom_ops_library(str(self.runtime_path))
        options.log_severity_level = 4
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def _launched(
        self, code: bytes, entry: bytes, grid: Any, threads: int, shared: int, stream: int | None, parameters: Any
    ) -> int:
        says = json.loads(code.decode().splitlines()[-1])
        launch = Launch(says, entry.decode(), tuple(grid[:3]), threads, shared, stream)
        self.launches.append(launch)
        try:
            _compute(launch, parameters)
        except Exception as error:
            self.failed = error
            return 719  # CUDA_ERROR_LAUNCH_FAILED
        return 0


def _compute(launch: Launch, parameters: Any) -> None:
    kernel = KERNELS[launch.code["kernel"]]
    arguments: list[Any] = []
    for number, (name, kind) in enumerate((kernel.parameters | SCRATCH).items()):
        if name in SCRATCH:
            assert ctypes.c_void_p.from_address(parameters[number]).value is None
        elif kind in SCALARS:
            arguments.append(SCALARS[kind].from_address(parameters[number]).value)
        else:
            address = ctypes.c_void_p.from_address(parameters[number]).value
            assert address is not None
            assert address % ALIGNMENT_BYTES == 0
            # a kernel takes nothing but the address
            arguments.append(torch.frombuffer((ctypes.c_char * 16).from_address(address), dtype=TYPES[kind], count=1))
    kernel.function[launch.grid](*arguments, **launch.code["constants"])


def _built(source: str, path: Path, *options: str) -> Path:
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-shared", "-fPIC", "-pthread"]
    command = [*compiler(), *flags, *options, str(HERE / source), "-o", str(path), "-ldl"]
    subprocess.run(command, check=True)
    return path
