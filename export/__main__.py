"""`python -m export`: make a model directory out of published weights.

Progress goes to standard error, the path of what was made to standard output. Exit status: 0 done, 1 refused or
failed with nothing written, 2 a wrong command line, 130 interrupted with nothing written.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from export.errors import ExportError
from export.job import ExportJob
from export.pipeline import run
from export.progress import Progress
from export.remote_weights import checked_weights
from export.sampling import MAX_OPSET, MIN_OPSET, STRATEGY_NAMES
from export.steps import ALL, STEPS
from export.targets import TARGETS, find_target
from models.checkpoint import CheckpointError
from models.config import ConfigError, SizeError
from models.dat import DAT
from models.variants import VARIANTS, Variant, find_variant
from service.errors import StartupError
from service.remote.address import BadAddress, RemoteAddress, is_remote

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.list:
        print(variants_table())
        return 0
    try:
        progress = Progress(sys.stderr)
        path = run(_job(arguments, progress), progress)
    except (ExportError, CheckpointError, ConfigError, SizeError, StartupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export", description="Export a DAT to a verified model directory for the service."
    )
    parser.add_argument("variant", nargs="?", metavar="VARIANT", help="one of those that --list shows")
    parser.add_argument("--list", action="store_true", help="show the variants and where their weights are found")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=_place,
        metavar="FILE",
        help="published weights, as torch, NumPy or safetensors files; or the address of one, as https://... or s3://...",
    )
    weights.add_argument("--random-weights", type=int, metavar="SEED", help="random weights instead, for trials")
    parser.add_argument(
        "--sha256", type=_digest, metavar="DIGEST", help="digest of --weights, which an address must have"
    )
    parser.add_argument(
        "--download-cache",
        type=Path,
        metavar="DIR",
        help="where weights from an address are kept (default: dat-serve in the user's cache directory)",
    )
    parser.add_argument(
        "--weights-key",
        metavar="KEY",
        help="where in the file the weights lie, as in state_dict_ema or teacher (default: wherever they fit)",
    )
    parser.add_argument("--repository", type=Path, metavar="DIR", default=Path("model-repository"))
    parser.add_argument("--name", help="the model's name in the repository (default: the variant)")
    parser.add_argument("--version", type=int, metavar="N", help="default: the next free number")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32")
    parser.add_argument(
        "--target",
        choices=tuple(TARGETS),
        help="what will run it, which decides --sampling and --opset (default: cuda on a machine with a GPU, else cpu)",
    )
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="photos that int8 takes its ranges from")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="what the service divides logits by before softmax, as `python -m service calibrate` found it for these "
        "weights",
    )
    parser.add_argument("--image-size", type=_image_size, metavar="N|HxW", help="default: that of the variant")
    parser.add_argument("--window-size", type=int, metavar="N", help="window of first-generation models")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names: a table, or one name a line")
    parser.add_argument(
        "--sampling",
        metavar="STRATEGY",
        help=f"{', '.join(STRATEGY_NAMES)} (default: the target's)",
    )
    parser.add_argument("--opset", type=int, metavar="N", help=f"{MIN_OPSET} to {MAX_OPSET} (default: the target's)")
    parser.add_argument(
        "--graph-steps",
        metavar="STEPS",
        help=f"for --target cuda: {', '.join(STEPS)} with commas between, or {ALL} (default: the target's)",
    )
    parser.add_argument(
        "--dynamic-size", action="store_true", help="one graph for images of any size (second generation)"
    )
    parser.add_argument(
        "--no-explain",
        dest="explain",
        action="store_false",
        help="leave out explain.onnx, the float32 graph of where the model looks, which the route /v1/explain needs",
    )
    parser.add_argument(
        "--fused",
        action="store_true",
        help="for --target cuda --precision fp16: write fused.onnx beside model.onnx, of operators of this "
        "project's own, verified on the CPU and not run on a GPU yet",
    )
    return parser


def _place(text: str) -> Path | RemoteAddress:
    try:
        return RemoteAddress(text) if is_remote(text) else Path(text)
    except BadAddress as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError("a sha256 of 64 digits from 0 to f is wanted")
    return text


def _image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 224 or 256x352 (height x width)")
    return int(match[1]), int(match[2] or match[1])


def _job(arguments: argparse.Namespace, progress: Progress) -> ExportJob:
    if arguments.variant is None:
        raise ExportError(f"name a variant; known are: {', '.join(VARIANTS)}")
    try:
        variant = find_variant(arguments.variant)
    except KeyError as error:
        raise ExportError(error.args[0]) from error
    if arguments.weights is None and arguments.random_weights is None:
        raise ExportError(
            f"give the weights of {arguments.variant} with --weights FILE "
            f"({variant.weights}), or --random-weights SEED for a trial"
        )
    weights = arguments.weights
    if weights is not None:
        weights = checked_weights(weights, arguments.sha256, arguments.download_cache, progress)
    elif arguments.sha256 is not None:
        raise ExportError("--sha256 is of --weights")
    return ExportJob(
        variant=variant,
        repository=arguments.repository,
        weights=weights,
        weights_key=arguments.weights_key,
        seed=arguments.random_weights,
        name=arguments.name,
        version=arguments.version,
        precision=arguments.precision,
        image_size=arguments.image_size,
        window=arguments.window_size,
        labels=arguments.labels,
        target=find_target(arguments.target),
        sampling=arguments.sampling,
        opset=arguments.opset,
        graph_steps=arguments.graph_steps,
        dynamic_size=arguments.dynamic_size,
        temperature=arguments.temperature,
        calibration=arguments.calibration,
        explain=arguments.explain,
        fused=arguments.fused,
    )


def variants_table() -> str:
    """Return the variants as lines of text: size, input, published accuracy, where the weights are found."""
    lines = [f"{'variant':<16} {'parameters':>10} {'input':>6} {'resize':>6} {'top-1':>7} {'top-5':>7}  weights"]
    for variant in VARIANTS.values():
        parameters = f"{_parameter_count(variant) / 1e6:.1f} M"
        lines.append(
            f"{variant.name:<16} {parameters:>10} {variant.input_size:>6} {variant.resize:>6} "
            f"{_percent(variant.top1_percent):>7} {_percent(variant.top5_percent):>7}  {variant.weights}"
        )
    return "\n".join(lines)


def _parameter_count(variant: Variant) -> int:
    size = (variant.input_size, variant.input_size)
    with torch.device("meta"):
        model = DAT(variant.config.at_size(size), size)
    return sum(parameter.numel() for parameter in model.parameters())


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a terminated export cleans up as well
    sys.exit(main())
