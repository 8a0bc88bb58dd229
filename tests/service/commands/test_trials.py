"""What people are shown of a search."""

from __future__ import annotations

import asyncio

from service.commands.trials import check_table, header, row
from service.tuning.choice import Change, Choice
from service.tuning.figures import Goal
from service.tuning.outcome import verdict_lines
from service.tuning.search import Found, Step, Trial, search
from tests.service.tuning.worlds import World

STEPS = [Step(Change("tiny", {"instances": count}), ("tiny",)) for count in (2, 4, 8)]


def shown(world: World) -> tuple[Found, list[str]]:
    rows: list[str] = []

    def report(trial: Trial | None) -> None:
        assert trial is not None
        rows.append(row(trial, is_first=not rows))

    found = asyncio.run(
        search(STEPS, world, goal=Goal.THROUGHPUT, models=("tiny",), rounds=2, check_rounds=3, report=report)
    )
    return found, rows


def speed(choice: Choice, concurrency: int) -> float:
    rates = {1: (10.0, 10.0), 2: (10.0, 30.0), 4: (5.0, 80.0)}
    count = choice.models.get("tiny", {}).get("instances", 1)
    return rates[count][concurrency > 1]  # type: ignore[index]


def test_each_row_says_what_was_tried_and_what_became_of_it() -> None:
    world = World(speed, faults=lambda choice: "no\nmemory" if "instances 8" in str(choice) else None)
    found, rows = shown(world)
    first, better, worse, refused, check = rows
    assert header((1, 8)).splitlines()[0].split() == ["1", "in", "flight", "8", "in", "flight"]
    assert first.startswith("the defaults, twice")
    assert " 1.000 " in first
    assert better.endswith("  better")
    assert worse.endswith("  worse with 1 in flight")
    assert refused.endswith("cannot be served: no\\nmemory")
    assert check.startswith("tiny: instances 2")
    table = check_table(found, Goal.THROUGHPUT).splitlines()
    assert table[0] == "beside the defaults, 3 rounds in turn: tiny: instances 2"
    assert [line.split()[0] for line in table[2:]] == ["1", "8"]
    assert "3.000  3.000 to 3.000" in table[3]
    assert verdict_lines(found, Goal.THROUGHPUT)[0].startswith("Beside the defaults: 1.732 times as good")


def test_where_nothing_is_better_that_is_said() -> None:
    found, rows = shown(World(lambda _, __: 10.0))
    assert all(line.endswith("  no better") for line in rows[1:])
    assert verdict_lines(found, Goal.THROUGHPUT) == [
        "Nothing that was tried is better than the defaults beyond noise: they are kept."
    ]


def test_a_choice_that_is_given_up_is_named() -> None:
    def fades(choice: Choice, _: int) -> float:
        return 20.0 if choice != Choice() and len(world.asked) < 3 else 10.0

    world = World(fades)
    found, _ = shown(world)
    assert found.choice == Choice()
    (line,) = verdict_lines(found, Goal.THROUGHPUT)
    assert line.startswith("What the search came to (tiny: instances 2) was 1.000 times as good")
    assert line.endswith("the defaults are kept.")
