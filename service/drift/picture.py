"""A comparison as an SVG picture: the distribution of the scores, and the classes whose shares changed most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from service.drift.comparison import ClassShares, Comparison

_BINS = 20
_CLASSES = 12
_WIDTH, _HEIGHT = 940, 380
_TOP, _BOTTOM = 70, 330
_LEFT, _MIDDLE, _RIGHT = 60, 410, 900
_LABELS_END = 640
_COLOURS = ("#2458b8", "#c4561c")
_STYLE = (
    "text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:12.5px;fill:#1c222b}"
    ".faint{stroke:#c3c9d2}.title{font-weight:600}"
)


def as_svg(comparison: Comparison) -> str:
    """Return the picture as an SVG document."""
    body = "\n".join([*_legend(), *_scores(comparison), *_classes(comparison.classes[:_CLASSES])])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">\n'
        f"<title>Answers then and now</title>\n<style>{_STYLE}</style>\n"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _legend() -> Iterator[str]:
    for name, colour, left in zip(("reference", "current"), _COLOURS, (_LEFT, _LEFT + 110), strict=True):
        yield f'<rect x="{left}" y="14" width="14" height="14" fill="{colour}"/>'
        yield f'<text x="{left + 20}" y="26">{name}</text>'


def _scores(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of two histograms over the same bins, in shares of the images."""
    yield f'<text class="title" x="{_LEFT}" y="56">Score of the first class</text>'
    shares = [_histogram(each.scores) for each in (comparison.reference, comparison.current)]
    highest = max(float(max(each.max() for each in shares)), 1e-9)
    width = (_MIDDLE - 40 - _LEFT) / _BINS
    for values, colour in zip(shares, _COLOURS, strict=True):
        places = [_BOTTOM - (_BOTTOM - _TOP) * value / highest for value in values.tolist()]
        steps = " ".join(f"V{place:.1f} h{width:.2f}" for place in places)
        yield f'<path d="M{_LEFT} {_BOTTOM} {steps} V{_BOTTOM}" fill="none" stroke="{colour}" stroke-width="2"/>'
    yield f'<path class="faint" d="M{_LEFT} {_BOTTOM}H{_MIDDLE - 40}"/>'
    yield f'<text x="{_LEFT}" y="{_BOTTOM + 18}">0</text>'
    yield f'<text x="{_MIDDLE - 40}" y="{_BOTTOM + 18}" text-anchor="end">1</text>'
    yield f'<text x="{_LEFT - 6}" y="{_TOP + 6}" text-anchor="end">{highest:.0%}</text>'


def _histogram(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    counts, _ = np.histogram(scores, _BINS, (0.0, 1.0))
    return counts / max(len(scores), 1)


def _classes(classes: Sequence[ClassShares]) -> Iterator[str]:
    """Yield two bars a class, as long as its shares."""
    yield f'<text class="title" x="{_MIDDLE}" y="56">Shares of the classes that changed most</text>'
    highest = max((max(each.reference, each.current) for each in classes), default=0.0) or 1.0
    height = (_BOTTOM - _TOP) / _CLASSES
    room = _RIGHT - 50 - _LABELS_END
    for row, each in enumerate(classes):
        top = _TOP + row * height
        name = each.label if len(each.label) <= 28 else f"{each.label[:27]}…"
        yield (
            f'<text x="{_LABELS_END - 8}" y="{top + height * 0.6:.1f}" text-anchor="end">'
            f"{escape(_drawable(name))} ({each.class_id})</text>"
        )
        for place, (share, colour) in enumerate(zip((each.reference, each.current), _COLOURS, strict=True)):
            y, width = top + 2 + place * (height - 4) / 2, room * share / highest
            yield (
                f'<rect x="{_LABELS_END}" y="{y:.1f}" width="{width:.1f}" height="{(height - 4) / 2 - 1:.1f}" '
                f'fill="{colour}"/>'
            )
        change = f"{each.current - each.reference:+.1%}"
        yield f'<text x="{_RIGHT}" y="{top + height * 0.6:.1f}" text-anchor="end">{change}</text>'


def _drawable(text: str) -> str:
    """Return text without characters that XML cannot have."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
