"""`drift`: whether answers differ from those of another time, from the Parquet of bulk runs or samples of requests.

Everything that needs pyarrow is imported when the command runs.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands.files import find_files
from service.commands.terminal import printable, say
from service.errors import SettingsError, StartupError

if TYPE_CHECKING:
    from service.drift.comparison import Comparison
    from service.drift.reading import Answers

EXIT_DRIFT = 3
_SHOWN_CLASSES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    place = (
        "folder, file, or pattern in quotes, as `python -m service bulk` or --sample-requests of a server wrote them"
    )
    parser.add_argument("reference", metavar="REFERENCE", help=f"answers to compare with: {place}")
    parser.add_argument("current", metavar="CURRENT", help="answers that may have drifted from these, the same")
    parser.add_argument(
        "--model", type=_model, metavar="NAME[:VERSION]", help="of several models in these files, the one to compare"
    )
    parser.add_argument(
        "--output",
        default="embedding",
        metavar="NAME",
        help="vectors to compare beside the classes (default: embedding)",
    )
    parser.add_argument(
        "--max-psi", type=_not_negative, default=0.2, metavar="N",
        help="population stability index of the classes, above chance, from which on it is drift (default: 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--max-ks", type=_not_negative, default=0.1, metavar="N",
        help="Kolmogorov-Smirnov distance of the scores, the same (default: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--max-mmd", type=_not_negative, default=0.1, metavar="N",
        help="maximum mean discrepancy of the vectors, the same (default: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--significance", type=_not_negative, default=0.01, metavar="P",
        help="drift only where chance makes so large a difference with a smaller probability (default: 0.01)",
    )  # fmt: skip
    parser.add_argument(
        "--fail-on-drift", action="store_true", help=f"exit with status {EXIT_DRIFT} where there is any"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw scores and classes")


def run(options: argparse.Namespace) -> int:
    """Print what has changed, and return EXIT_DRIFT where that is to fail; raises StartupError."""
    _require_pyarrow()
    if options.plot is not None and options.plot.suffix.lower() != ".svg":
        raise SettingsError(f"--plot: {options.plot} should end in .svg, which is what is drawn")
    import numpy as np

    from service.drift.comparison import Limits, compare
    from service.drift.picture import as_svg
    from service.drift.reading import read_answers

    rng = np.random.default_rng(0)  # the same files give the same report
    reference, current = (
        read_answers(_files(each), model=options.model, output=options.output, rng=rng)
        for each in (options.reference, options.current)
    )
    _remark(reference, current, options.output)
    limits = Limits(options.max_psi, options.max_ks, options.max_mmd, options.significance)
    comparison = compare(reference, current, limits, rng)
    if not comparison.findings:
        raise StartupError("there is nothing to compare: both want two images with classes, or with vectors, at least")
    print(_as_json(comparison) if options.json else _as_text(comparison))
    if options.plot is not None:
        try:
            options.plot.write_text(as_svg(comparison), encoding="utf-8")
        except OSError as error:
            raise StartupError(f"--plot: {options.plot} cannot be written: {error.strerror}") from error
    return EXIT_DRIFT if options.fail_on_drift and comparison.is_drift else 0


def _files(given: str) -> list[str]:
    found = find_files([given], suffixes=(".parquet",))
    for path, fault in found.faults.items():
        reason = "The folder holds no Parquet files." if fault.code == "no_images" else fault.detail
        raise StartupError(f"{printable(path)}: {reason}")
    return found.files


def _remark(reference: Answers, current: Answers, output: str) -> None:
    """Say what may explain a difference, or be missing."""
    if lacking := [name for name, each in _sides(reference, current) if each.vectors is None]:
        say(f"there is no {printable(output)} in {' and '.join(lacking)}, and it is not compared")
    if reference.model != current.model:
        say("the answers are of two models, or exports, which may be all that differs")
    if gone := reference.gone + current.gone:
        say(f"{gone} files were removed while others were read")


def _sides(reference: Answers, current: Answers) -> tuple[tuple[str, Answers], ...]:
    return (("reference", reference), ("current", current))


def _as_text(comparison: Comparison) -> str:
    sides = (comparison.reference, comparison.current)
    lines = [f"{'':<12}{'reference':>24}{'current':>24}"]
    lines.append(f"{'model':<12}" + "".join(f"{f'{each.model[0]}:{each.model[1]}':>24}" for each in sides))
    lines.append(f"{'images':<12}" + "".join(f"{each.images:>24}" for each in sides))
    lines.append(f"{'classified':<12}" + "".join(f"{each.classified:>24}" for each in sides))
    lines.append(f"{'mean score':<12}" + "".join(f"{_mean_score(each):>24}" for each in sides))
    lines += ["", f"{'compared':<12}{'value':>8}{'limit':>8}{'chance':>9}  drift"]
    for finding in comparison.findings:
        drift = "yes" if finding.is_drift else "no"
        lines.append(
            f"{finding.name:<12}{finding.value:>8.3f}{finding.limit:>8.3f}{finding.p_value:>9.3g}  "
            f"{drift:<5} {finding.statistic}"
        )
    if comparison.classes:
        lines += ["", "reference   current  class"]
    for each in comparison.classes[:_SHOWN_CLASSES]:
        lines.append(f"{each.reference:>9.2%} {each.current:>9.2%}  {each.class_id} {printable(each.label)}")
    return "\n".join(lines)


def _mean_score(answers: Answers) -> str:
    return f"{answers.scores.mean():.3f}" if answers.classified else "none"


def _as_json(comparison: Comparison) -> str:
    report: dict[str, Any] = {
        "drift": comparison.is_drift,
        **{
            name: {
                "model": {"name": each.model[0], "version": each.model[1], "weights_sha256": each.model[2]},
                "images": each.images,
                "classified": each.classified,
                "vectors": 0 if each.vectors is None else len(each.vectors),
                "mean_score": float(each.scores.mean()) if each.classified else None,
            }
            for name, each in _sides(comparison.reference, comparison.current)
        },
        "findings": [
            {
                "name": each.name,
                "statistic": each.statistic,
                "value": each.value,
                "limit": each.limit,
                "p_value": each.p_value,
                "drift": each.is_drift,
            }
            for each in comparison.findings
        ],
        "classes": [
            {"class_id": each.class_id, "label": each.label, "reference": each.reference, "current": each.current}
            for each in comparison.classes
        ],
    }
    return json.dumps(report, indent=2)


def _model(text: str) -> tuple[str, int | None]:
    name, _, version = text.partition(":")
    return name, int(version) if version else None


def _not_negative(text: str) -> float:
    number = float(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0, or no number")
    return number


def _require_pyarrow() -> None:
    try:
        import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"drift: {error.name} is not installed; requirements/bulk.txt has what reading Parquet needs"
        ) from error
