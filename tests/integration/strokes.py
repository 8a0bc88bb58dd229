"""Digits as a mouse would draw them: a few lines and arcs of even width on a square canvas."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 280
Stroke = list[tuple[float, float]]


def _arc(x: float, y: float, radius_x: float, radius_y: float, start: float, end: float) -> Stroke:
    """Points on an ellipse, degrees clockwise from the right; coordinates are fractions of the canvas."""
    angles = np.radians(np.linspace(start, end, 25))
    return [(x + radius_x * math.cos(angle), y + radius_y * math.sin(angle)) for angle in angles]


STROKES: dict[int, list[Stroke]] = {
    0: [_arc(0.5, 0.5, 0.22, 0.35, -90, 270)],
    1: [[(0.38, 0.28), (0.52, 0.15), (0.52, 0.85)]],
    2: [[*_arc(0.5, 0.32, 0.2, 0.17, -170, 40), (0.3, 0.82), (0.73, 0.82)]],
    3: [_arc(0.47, 0.32, 0.2, 0.17, -150, 90) + _arc(0.47, 0.67, 0.23, 0.18, -90, 150)],
    4: [[(0.6, 0.85), (0.6, 0.15), (0.28, 0.6), (0.76, 0.6)]],
    5: [[(0.7, 0.15), (0.36, 0.15), (0.34, 0.47), *_arc(0.48, 0.63, 0.22, 0.2, -120, 140)]],
    6: [[(0.62, 0.15), *_arc(0.5, 0.62, 0.22, 0.22, -150, -180), *_arc(0.5, 0.64, 0.2, 0.2, 180, -180)]],
    7: [[(0.28, 0.17), (0.72, 0.17), (0.44, 0.85)]],
    8: [_arc(0.5, 0.32, 0.17, 0.16, 90, 450), _arc(0.5, 0.66, 0.21, 0.18, -90, 270)],
    9: [_arc(0.5, 0.34, 0.19, 0.19, 0, 360), [(0.69, 0.34), (0.66, 0.6), (0.58, 0.85)]],
}


def draw(digit: int, *, width: int, dark_on_light: bool, random: np.random.Generator) -> np.ndarray:
    """Return a drawing, uint8 (280, 280), its size, place and slant drawn from `random`."""
    ink, paper = (0, 255) if dark_on_light else (255, 0)
    canvas = Image.new("L", (CANVAS, CANVAS), paper)
    pen = ImageDraw.Draw(canvas)
    scale, angle = random.uniform(0.7, 1.0), random.uniform(-0.15, 0.15)
    shift_x, shift_y = random.uniform(-0.08, 0.08, 2)
    for stroke in STROKES[digit]:
        points = []
        for x, y in stroke:
            turned_x = (x - 0.5) * math.cos(angle) - (y - 0.5) * math.sin(angle)
            turned_y = (x - 0.5) * math.sin(angle) + (y - 0.5) * math.cos(angle)
            points.append(((turned_x * scale + 0.5 + shift_x) * CANVAS, (turned_y * scale + 0.5 + shift_y) * CANVAS))
        pen.line(points, fill=ink, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=ink)
    return np.asarray(canvas)
