"""Turns, their order, and what is made of them."""

from __future__ import annotations

import pytest

from benchmarks.rounds import Turn, play, rotated, summary, take_turn


def turns(*runs_ms: float) -> list[Turn]:
    return [Turn(run_ms, 2 * run_ms) for run_ms in runs_ms]


def test_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_the_medians() -> None:
    # The machine was ten times slower in one round, which the contenders met in unlike measure.
    measured = {"ort-plain": turns(20, 300, 40), "ort-ours": turns(10, 100, 40), "limit": turns(5, 50, 10)}
    rows = {row["contender"]: row for row in summary(measured, batch=1, baseline="ort-plain", limit="limit")}
    assert rows["ort-ours"]["speed_over_plain"] == 2.0  # of 2, 3, 1
    assert rows["ort-ours"]["time_over_limit"] == 2.0  # of 2, 2, 4
    assert rows["ort-plain"]["speed_over_plain"] == 1.0


def test_figures_are_of_one_image() -> None:
    (row,) = summary({"ort-ours": turns(80, 160, 40)}, batch=8, baseline="ort-plain", limit="limit")
    assert (row["ms_per_image"], row["images_per_s"], row["cpu_ms_per_image"]) == (10.0, 100.0, 20.0)


def test_ratio_to_what_was_not_measured_is_none() -> None:
    (row,) = summary({"ort-ours": turns(1)}, batch=1, baseline="ort-plain", limit="limit")
    assert row["speed_over_plain"] is None
    assert row["time_over_limit"] is None


def test_every_round_begins_with_another_contender() -> None:
    assert [rotated(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_each_contender_has_one_turn_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rounds.MIN_TURN_S", 0.0)
    played = play({"a": lambda: None, "b": lambda: None}, rounds=3)
    assert {name: len(own) for name, own in played.items()} == {"a": 3, "b": 3}


def test_turn_warms_up_and_repeats_until_its_time_is_over() -> None:
    runs = []
    take_turn(lambda: runs.append(None), min_s=0.0)
    assert len(runs) == 2  # one untimed, one timed
