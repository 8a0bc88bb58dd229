"""The settings file that a search ends with: written beside its place, read back as a server does, then put there."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from service import VERSION
from service.errors import SettingsError, StartupError
from service.settings import load_settings
from service.tuning.choice import Choice
from service.tuning.figures import Figures, Goal
from service.tuning.given import Given
from service.tuning.search import Found
from service.tuning.space import Cores, ModelFacts


def check_place(path: Path, *, force: bool) -> None:
    """Raise SettingsError where no file may be put there."""
    if not path.parent.is_dir():
        raise SettingsError(f"there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise SettingsError(f"the folder {path.parent} may not be written to")
    if path.is_dir():
        raise SettingsError(f"{path} is a folder")
    if path.exists() and not force:
        raise SettingsError(f"{path} is there already; --force puts another in its place")


def write(path: Path, given: Given, choice: Choice, *, comment: Sequence[str], force: bool) -> None:
    """Put the settings file in its place, whole or not at all; raises StartupError.

    It may be read by those who may read the settings file that was given: what is secret there is in it, too.
    """
    made_from = given.settings.settings
    mode = 0o666 if made_from is None else made_from.stat().st_mode & 0o777
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            beside.touch(mode=mode, exist_ok=False)
            beside.write_text(given.for_user(choice, comment=comment), encoding="utf-8")
            _read_back(beside, choice)
            check_place(path, force=force)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror or error}") from error


def _read_back(path: Path, choice: Choice) -> None:
    """Raise StartupError where a server that reads the file would not have what was chosen."""
    settings = load_settings({"settings": path})
    for change in choice.changes():
        of_these = settings if change.model is None else settings.of_model(change.model)
        for name, value in change.values.items():
            if (read := getattr(of_these, name)) != value:
                raise StartupError(f"{name} would be read as {read} where {value} was chosen")


def comment_of(
    found: Found, models: Sequence[ModelFacts], *, goal: Goal, cores: Cores, told: Sequence[str]
) -> list[str]:
    """Return the lines that a settings file begins with: where it is from, for what it was made, what was measured."""
    lines = [
        f"Made by `python -m service tune` (dat-serve {VERSION}) on {datetime.now(UTC):%Y-%m-%d}.",
        f"Machine: {cores.usable} cores, {_processor()}; "
        + ", ".join(f"{model.name} on {model.device}" for model in models)
        + ".",
        *told,
        *verdict_lines(found, goal),
    ]
    return ["".join(each if each.isprintable() else "?" for each in line) for line in lines]


def verdict_lines(found: Found, goal: Goal) -> list[str]:
    """Return in sentences what the check has shown."""
    if found.check is None:
        return ["Nothing that was tried is better than the defaults beyond noise: they are kept."]
    verdict = found.check.verdict
    if verdict is None:
        return [f"What the search came to ({found.candidate}) could not be checked, so the defaults are kept."]
    rounds = len(found.check.comparison.rounds)
    beside = (
        f"{verdict.ratio:.3f} times as good as the defaults ({goal}), noise {verdict.margin:.3f}, in {rounds} rounds"
    )
    if found.choice != found.candidate:
        where = "" if verdict.worse_at is None else f", and worse with {verdict.worse_at} in flight"
        return [f"What the search came to ({found.candidate}) was {beside}{where}: the defaults are kept."]
    lines = [f"Beside the defaults: {beside}."]
    for concurrency in found.check.comparison.concurrencies:
        default, chosen = medians(found, concurrency)
        lines.append(
            f"  {concurrency} in flight: {chosen.images_per_s:.1f} instead of {default.images_per_s:.1f} images/s, "
            f"p50 {chosen.p50_ms:.1f} instead of {default.p50_ms:.1f} ms, "
            f"p95 {chosen.p95_ms:.1f} instead of {default.p95_ms:.1f} ms"
        )
    return lines


def medians(found: Found, concurrency: int) -> tuple[Figures, Figures]:
    """Return the defaults' median figures in the check, and the candidate's; there must have been one."""
    assert found.check is not None
    pairs = [each[concurrency] for each in found.check.comparison.rounds]
    return median_figures([pair.best for pair in pairs]), median_figures([pair.other for pair in pairs])


def median_figures(windows: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    return Figures(
        median(each.images_per_s for each in windows),
        median(each.p50_ms for each in windows),
        median(each.p95_ms for each in windows),
        sum(each.failed for each in windows),
        median(each.client_share for each in windows),
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()
