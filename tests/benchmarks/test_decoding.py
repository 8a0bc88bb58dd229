"""What an image costs before it is computed: what is measured, and the rows that are made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.decoding import BASELINE, PREPROCESSING, contenders, main, rows_of
from benchmarks.rounds import Turn
from service.images import bicubic
from service.images.preprocessing import prepare_pillow
from tests.service.pictures import naive, photo


def test_both_ways_of_resizing_give_the_published_pixels_of_one_file_after_the_other() -> None:
    prepare_pillow()
    files = [photo("JPEG", width=320, height=300, seed=seed) for seed in range(2)]
    crop, resize = PREPROCESSING.crop, PREPROCESSING.resize
    measured = contenders(files)
    for name in (BASELINE, "decode, resize by the library"):
        for data in files:
            np.testing.assert_array_equal(measured[name](), naive(data, resize=resize, crop=crop))
    for run in measured.values():
        run()


def test_ratios_are_of_the_same_round_and_rates_of_the_median() -> None:
    turns = {
        BASELINE: [Turn(1, 4.0), Turn(1, 8.0), Turn(1, 40.0)],
        "decode": [Turn(1, 2.0), Turn(1, 2.0), Turn(1, 10.0)],
    }
    first, second = rows_of(turns, cores=16)
    assert (first["cpu_ms"], first["speed_over_pillow"], first["images_per_s_of_16_cores"]) == (8.0, 1.0, 2000)
    assert (second["cpu_ms"], second["speed_over_pillow"], second["images_per_s_of_16_cores"]) == (2.0, 4.0, 8000)


def test_nothing_is_measured_where_the_library_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bicubic, "load", lambda: "Pillow resizes: a reason.")
    assert main(["--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "Pillow resizes: a reason.\n"
    assert not list(tmp_path.iterdir())
