"""What a search tried, as a table for people: a row for each comparison, and the check at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.commands.terminal import printable
from service.tuning.figures import Comparison, Goal
from service.tuning.outcome import median_figures, medians
from service.tuning.search import Found, Trial

_TRIED = 44
_FIGURES = 18


def header(concurrencies: Sequence[int]) -> str:
    """Return the table's head: of what was tried its medians, and by how much it was better than the best so far."""
    over = "".join(f"{f'{each} in flight':>{_FIGURES}}" for each in concurrencies)
    under = f"{'images/s':>{_FIGURES - 8}}{'p50 ms':>8}" * len(concurrencies)
    return f"{'':{_TRIED}}{over}\n{'tried':{_TRIED}}{under}   ratio  noise"


def row(trial: Trial, *, is_first: bool) -> str:
    """Return the row of one comparison."""
    tried = f"{printable(trial.tried):{_TRIED}}"
    if trial.verdict is None:
        return f"{tried}  cannot be served: {printable(trial.comparison.fault or '')}"
    cells = ""
    for concurrency in trial.comparison.concurrencies:
        figures = median_figures([each[concurrency].other for each in trial.comparison.rounds])
        cells += f"{figures.images_per_s:>{_FIGURES - 8}.1f}{figures.p50_ms:>8.1f}"
    verdict = trial.verdict
    if is_first:
        said = ""
    elif trial.is_kept:
        said = "  better"
    elif verdict.worse_at is not None:
        said = f"  worse with {verdict.worse_at} in flight"
    else:
        said = "  no better"
    failed = sum(pair.other.failed for each in trial.comparison.rounds for pair in each.values())
    said += f"  {failed} requests failed" if failed else ""
    return f"{tried}{cells}   {verdict.ratio:5.3f}  {verdict.margin:5.3f}{said}"


def check_table(found: Found, goal: Goal) -> str:
    """Return the check at the end: the candidate beside the defaults, by medians, with the spread of the ratios."""
    assert found.check is not None
    comparison = found.check.comparison
    if not comparison.rounds:
        return f"the check failed: {printable(comparison.fault or '')}"
    lines = [
        f"beside the defaults, {len(comparison.rounds)} rounds in turn: {printable(found.check.tried)}",
        f"{'in flight':>9}{'images/s':>18}{'p50 ms':>18}{'p95 ms':>18}{'failed':>10}   ratio  of the rounds",
    ]
    for concurrency in comparison.concurrencies:
        default, chosen = medians(found, concurrency)
        pairs = ((default.images_per_s, chosen.images_per_s), (default.p50_ms, chosen.p50_ms))
        cells = "".join(f"{f'{before:.1f} -> {after:.1f}':>18}" for before, after in (
            *pairs, (default.p95_ms, chosen.p95_ms)))  # fmt: skip
        failed = f"{default.failed} -> {chosen.failed}"
        lines.append(f"{concurrency:>9}{cells}{failed:>10}   {_ratios(comparison, goal, concurrency)}")
    return "\n".join(lines)


def clients_cost(comparison: Comparison) -> float:
    """Return the largest median share of a core that the clients took."""
    return max(
        median_figures([each[concurrency].best for each in comparison.rounds]).client_share
        for concurrency in comparison.concurrencies
    )


def _ratios(comparison: Comparison, goal: Goal, concurrency: int) -> str:
    ratios = sorted(map(math.exp, comparison.log_ratios(goal, concurrency)))
    middle = (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2
    return f"{middle:5.3f}  {ratios[0]:.3f} to {ratios[-1]:.3f}"
