"""Everything that is to be measured on a GPU, in one call of ten minutes: `python -m benchmarks.gpu [options]`.

In this order, each row written as it comes, so that what is cut off loses nothing before: what the device can do at
most (`ceiling`); the exports and the compilation of every contender, side by side (`ready`, or `lost` with the reason);
how far each is from torch's float32 on the CPU (`agreement`: who is beyond the bound is not timed); turns, round after
round (`speed`, with the ratio to torch.compile within each round); the nodes of the first graph and of the fastest
(`node`); the memory of each (`memory`); and the server under load (`http`). No phase begins after `--budget-s`.

On a CPU the same runs with small shapes, which is how it is tested: `python -m benchmarks.gpu --device cpu
--variants dat_demo --batch 1 2 --rounds 1`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contender_process import ContenderLost, ContenderProcess, Spec, images_of
from benchmarks.device_figures import ceilings, distance, memory_mib, node_rows, served, speeds
from benchmarks.forms import Form, FormUnavailable, form_of
from benchmarks.journal import Journal
from benchmarks.machine import describe
from benchmarks.processes import export_command
from benchmarks.rounds import Turn, rotated
from benchmarks.scenarios import write_photos
from export.steps import STEPS
from export.verify import TOLERANCES
from models.variants import VARIANTS
from service.model.directory import open_model

_FP16 = "--precision fp16 --target cuda --no-explain"
GRAPHS: Mapping[str, str] = {
    "separable": _FP16,
    "gridsample": f"{_FP16} --sampling gridsample",
    **{str(step): f"{_FP16} --graph-steps {step}" for step in STEPS},
    "fused": f"{_FP16} --fused",
    "all_steps": f"{_FP16} --graph-steps all",
    "all_steps_gridsample": f"{_FP16} --sampling gridsample --graph-steps all",
}
"""The exports that are compared, by name: arguments of `python -m export`. A fused graph runs where there is one."""
_TORCH = ("torch-plain", "compile-plain")
_TORCH_ON_A_GPU = (*_TORCH, "compile-reduce-overhead-plain")
_BASELINE = "compile-plain"
_BOUND = TOLERANCES["fp16"]
_CHECKED_IMAGES = 8
_TURN_S = 0.25
_ANSWER_TIMEOUT_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 where a contender was lost or is beyond its bound."""
    arguments = _parser().parse_args(argv)
    if arguments.torch is None:
        arguments.torch = _TORCH_ON_A_GPU if arguments.device == "cuda" else _TORCH
    # Read when torch loads its OpenMP: without it torch's threads spin into the next contender's turn.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    journal = Journal(arguments.results, arguments.budget_s)
    journal.write("machine", **describe("onnx", "onnxscript", "torch", "triton"), options=_told(arguments))
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(arguments, journal, Path(folder))
    finally:
        journal.write("end")
        journal.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--variants", nargs="+", choices=sorted(VARIANTS), default=["dat_tiny", "dat_pp_tiny"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget-s", type=float, default=570.0)
    parser.add_argument("--prepare-s", type=float, default=240.0, help="for exporting and compiling, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument(
        "--graph", action="append", type=_named, default=[], metavar="NAME=ARGS", help="in place of the usual exports"
    )
    parser.add_argument("--torch", nargs="*", help=f"contenders without a graph; on a GPU {' '.join(_TORCH_ON_A_GPU)}")
    parser.add_argument("--http", action=argparse.BooleanOptionalAction, default=True, help="measure the server, too")
    parser.add_argument("--workers", type=int, default=8, help="of the server")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64, 256, 512], help="requests to the server")
    parser.add_argument("--load-s", type=float, default=4.0, help="of each figure of the server")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/gpu.jsonl"))
    return parser


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ARGS")
    return name, value


def _told(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}


def _measure(arguments: argparse.Namespace, journal: Journal, folder: Path) -> int:
    ceilings(arguments.device, arguments.variants[0], max(arguments.batch), journal)
    comparisons = [Comparison(variant, arguments, journal, folder) for variant in arguments.variants]
    with ExitStack() as running:
        for each in comparisons:
            running.enter_context(each).begin()
        until_s = time.monotonic() + min(arguments.prepare_s, journal.left_s)
        for step in (lambda each: each.wait_ready(until_s), Comparison.check, Comparison.time, Comparison.weigh):
            for each in comparisons:
                step(each)
    # The contenders have ended, and with them the memory that they held.
    for each in comparisons:
        each.profile()
        if arguments.http:
            each.serve()
    return 1 if any(each.lost for each in comparisons) else 0


class Comparison:
    """The contenders of one variant, from their exports to the server; a context, which ends their processes."""

    def __init__(self, variant: str, arguments: argparse.Namespace, journal: Journal, folder: Path) -> None:
        self.variant, self._arguments, self._journal = variant, arguments, journal
        self._folder, self._photos = folder / variant, folder / "photos"
        self._exports: dict[str, subprocess.Popen[str]] = {}
        self._graphs: dict[str, Path] = {}
        """The model directories that were exported, by the name of their contender."""
        self._forms: dict[str, Form] = {}
        """What runs of them."""
        self._running: dict[str, ContenderProcess] = {}
        self._speeds: dict[str, float] = {}
        self.lost = False
        """Whether a contender was lost, or is not near enough to torch."""

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        for export in self._exports.values():
            export.kill()
            export.communicate()
        for contender in self._running.values():
            contender.close()

    def begin(self) -> None:
        """Begin to export and to compile, without waiting."""
        for name, args in self._wanted().items():
            self._exports[name] = self._export(name, args)
        for name in self._arguments.torch:
            self._start(Spec(name, self.variant, self._arguments.seed, self._arguments.device, self._arguments.batch))

    def wait_ready(self, until_s: float) -> None:
        """Wait until all have run each batch size; whoever has not by then is lost."""
        for name, export in self._exports.items():
            self._take(name, export, until_s)
        for name, contender in list(self._running.items()):
            with self._losing(name):
                contender.wait_ready(until_s - time.monotonic())
                self._journal.write("ready", variant=self.variant, contender=name)

    def _wanted(self) -> Mapping[str, str]:
        given = dict(self._arguments.graph)
        if given:
            return given
        return GRAPHS if self._arguments.device == "cuda" else {"separable": "--target cpu"}

    def _export(self, name: str, args: str) -> subprocess.Popen[str]:
        command = export_command(self.variant, self._arguments.seed, self._folder, name, args)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _take(self, name: str, export: subprocess.Popen[str], until_s: float) -> None:
        """Wait for an export, and start what runs its graph."""
        contender = f"ort-{name}"
        try:
            said, errors = export.communicate(timeout=max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            export.kill()
            said, errors = "", f"not exported in time: {export.communicate()[1]}"
        if export.returncode:
            self._lose(contender, errors.strip()[-2000:])
            return
        directory, device = Path(said.strip()), self._arguments.device
        try:
            form = form_of(directory, device, self._folder)
        except FormUnavailable as lack:
            self._lose(contender, str(lack))
            return
        self._graphs[contender], self._forms[contender] = directory, form
        exact = open_model(directory).manifest.precision == "fp32"
        path, operators, standard = form
        self._start(
            Spec(
                contender,
                self.variant,
                self._arguments.seed,
                device,
                self._arguments.batch,
                path,
                exact=exact,
                operators=operators,
                standard=standard,
            )
        )

    def _start(self, spec: Spec) -> None:
        self._running[spec.name] = ContenderProcess(spec)

    def check(self) -> None:
        """Compare every contender at every batch size with torch's float32 on the CPU."""
        expected = self._expected()
        for name, contender in list(self._running.items()):
            with self._losing(name):
                given = [contender.logits(batch, _ANSWER_TIMEOUT_S) for batch in self._arguments.batch]
                rms, largest = distance(given, expected)
                self._journal.write(
                    "agreement", variant=self.variant, contender=name, rms_over_std=rms, largest_over_std=largest
                )
                if not (rms <= _BOUND.rms and largest <= _BOUND.max):
                    raise ContenderLost(f"{name}: its logits are beyond the bounds {_BOUND.rms} and {_BOUND.max}")

    def _expected(self) -> NDArray[np.float32]:
        import torch

        from benchmarks.contenders import FromPixels, make_subject

        subject = make_subject(self.variant, seed=self._arguments.seed, device="cpu", batches=())
        with torch.no_grad():
            images = torch.from_numpy(images_of(self.variant, min(_CHECKED_IMAGES, max(self._arguments.batch))))
            logits: NDArray[np.float32] = FromPixels(subject.model, subject.variant)(images).numpy()
        return logits

    def time(self) -> None:
        """Have the contenders take turns, and write medians and ratios for each batch size."""
        for batch in self._arguments.batch:
            turns: dict[str, list[Turn]] = defaultdict(list)
            for number in range(self._arguments.rounds):
                if self._journal.left_s <= 0:
                    break
                for name in rotated(list(self._running), number):
                    with self._losing(name):
                        turn = self._running[name].turn(batch, _TURN_S, _ANSWER_TIMEOUT_S)
                        turns[name].append(turn)
            for row in speeds(turns, batch=batch, baseline=_BASELINE):
                self._journal.write("speed", variant=self.variant, **row)
                self._speeds[row["contender"]] = row["images_per_s"]

    def weigh(self) -> None:
        """Write the memory that each contender's process holds, on the GPU where there is one."""
        for name, contender in self._running.items():
            if contender.pid is not None:
                figures = memory_mib(contender.pid, self._arguments.device)
                self._journal.write("memory", variant=self.variant, contender=name, **figures)

    def profile(self) -> None:
        """Write where the first graph and the fastest spend their time."""
        first = next((name for name in self._graphs if name in self._speeds), None)
        for name in dict.fromkeys([first, self._fastest()]):
            if name is not None and self._journal.left_s > 0:
                form, batch = self._forms[name], max(self._arguments.batch)
                with self._losing(name):
                    for row in node_rows(form, self._arguments.device, batch):
                        self._journal.write("node", variant=self.variant, contender=name, **row)

    def serve(self) -> None:
        """Write what the server answers with the fastest graph, by requests in flight."""
        name = self._fastest()
        if name is not None and self._journal.left_s > 0:
            with self._losing(name):
                for row in self._served(name):
                    self._journal.write("http", variant=self.variant, contender=name, **row)

    def _served(self, name: str) -> Iterator[dict[str, Any]]:
        self._photos.mkdir(exist_ok=True)
        yield from served(
            self._graphs[name],
            write_photos(self._photos),
            device=self._arguments.device,
            workers=self._arguments.workers,
            in_flight=self._arguments.in_flight,
            duration_s=self._arguments.load_s,
        )

    def _fastest(self) -> str | None:
        """Return the contender with a graph that is fastest at the last batch size that was timed."""
        timed = [name for name in self._graphs if name in self._speeds]
        return max(timed, key=self._speeds.__getitem__, default=None)

    @contextmanager
    def _losing(self, name: str) -> Iterator[None]:
        """Within the block, one contender is given up where it is lost."""
        try:
            yield
        except ContenderLost as lost:
            self._lose(name, str(lost))

    def _lose(self, name: str, why: str) -> None:
        self.lost = True
        contender = self._running.pop(name, None)
        if contender is not None:
            contender.close()
        self._journal.write("lost", variant=self.variant, contender=name, why=why)


if __name__ == "__main__":
    sys.exit(main())
