"""The policy alone, on machines that are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.errors import StartupError
from service.tuning.choice import Change, Choice
from service.tuning.figures import Goal
from service.tuning.search import Found, Step, Trial, search
from tests.service.tuning.worlds import World

ROUNDS, CHECK_ROUNDS = 4, 8
FASTER = Step(Change("a", {"instances": 2, "threads": 1}), ("a",))
SLOWER = Step(Change("a", {"instances": 1, "threads": 1}), ("a",))
OF_ALL = Step(Change(None, {"workers": 2}), ("a", "b"))


def instances_of(choice: Choice, model: str = "a") -> object:
    return choice.models.get(model, {}).get("instances", 1)


def ran(
    world: World, steps: Sequence[Step], *, goal: Goal = Goal.THROUGHPUT, models: tuple[str, ...] = ("a",)
) -> tuple[Found, list[Trial | None]]:
    seen: list[Trial | None] = []
    found = asyncio.run(
        search(steps, world, goal=goal, models=models, rounds=ROUNDS, check_rounds=CHECK_ROUNDS, report=seen.append)
    )
    return found, seen


def test_what_is_faster_is_kept_and_what_is_slower_is_not() -> None:
    world = World(lambda choice, _: 20.0 if instances_of(choice) == 2 else 10.0)
    found, seen = ran(world, [FASTER, SLOWER])
    assert found.choice == Choice(models={"a": {"instances": 2, "threads": 1}})
    assert [trial.is_kept for trial in seen if trial] == [False, True, False, True]
    assert found.check is seen[-1]
    assert found.check is not None
    assert found.check.verdict is not None
    assert found.check.verdict.ratio == pytest.approx(2)


def test_each_is_compared_with_the_best_so_far_and_the_choice_with_the_defaults() -> None:
    world = World(lambda choice, _: 20.0 if instances_of(choice) == 2 else 10.0)
    found, _ = ran(world, [FASTER, SLOWER])
    kept = found.choice
    slower = kept.with_change(SLOWER.change)
    assert [(best, other) for best, other, _, _ in world.asked] == [
        (Choice(), Choice()), (Choice(), kept), (kept, slower), (Choice(), kept),
    ]  # fmt: skip
    assert [rounds for *_, rounds in world.asked] == [ROUNDS, ROUNDS, ROUNDS, CHECK_ROUNDS]


def test_without_anything_better_the_defaults_stay_and_are_not_checked_again() -> None:
    found, seen = ran(World(lambda choice, _: 10.0 if choice == Choice() else 9.0), [FASTER, SLOWER, OF_ALL])
    assert (found.choice, found.candidate, found.check) == (Choice(), Choice(), None)
    assert len(seen) == 4


@pytest.mark.parametrize("seed", range(20))
def test_a_choice_is_never_worse_than_the_defaults_however_noisy_it_is(seed: int) -> None:
    """Every change costs a twentieth: what noise makes look better must not be kept by more than noise."""
    world = World(lambda choice, _: 10.0 * 0.95 ** len(choice.changes()), noise=0.3, seed=seed)
    found, _ = ran(world, [FASTER, SLOWER, OF_ALL])
    assert found.choice == Choice()


@pytest.mark.parametrize("seed", range(5))
def test_a_real_gain_is_found_in_noise(seed: int) -> None:
    world = World(lambda choice, _: 16.0 if instances_of(choice) == 2 else 10.0, noise=0.05, seed=seed)
    found, _ = ran(world, [SLOWER, FASTER])
    assert found.choice.models["a"]["instances"] == 2


def test_what_is_worse_with_any_load_that_is_told_is_not_kept() -> None:
    def speed(choice: Choice, concurrency: int) -> float:
        if instances_of(choice) == 1:
            return 10.0
        return 6.0 if concurrency == 1 else 40.0

    found, seen = ran(World(speed), [FASTER])
    assert found.choice == Choice()
    assert seen[1] is not None
    assert seen[1].verdict is not None
    assert (seen[1].verdict.worse_at, seen[1].verdict.ratio > 1.5) == (1, True)
    found, _ = ran(World(speed, concurrencies=(8,)), [FASTER])
    assert instances_of(found.choice) == 2


def test_the_goal_says_what_is_better() -> None:
    world = World(lambda choice, _: 20.0 if instances_of(choice) == 2 else 10.0, concurrencies=(1,))
    found, _ = ran(world, [FASTER], goal=Goal.LATENCY)
    assert instances_of(found.choice) == 2
    assert found.check is not None
    assert found.check.verdict is not None
    assert found.check.verdict.ratio == pytest.approx(2)


def test_a_choice_that_does_not_hold_when_it_is_checked_is_given_up() -> None:
    world = World(lambda choice, _: 20.0 if instances_of(choice) == 2 and len(world.asked) < 3 else 10.0)
    found, seen = ran(world, [FASTER])
    assert (found.choice, instances_of(found.candidate)) == (Choice(), 2)
    assert seen[1] is not None
    assert (seen[1].is_kept, found.check is not None and found.check.is_kept) == (True, False)


def test_what_cannot_be_served_is_passed_over() -> None:
    world = World(lambda _, __: 10.0, faults=lambda choice: "no memory" if instances_of(choice) == 2 else None)
    found, seen = ran(world, [FASTER])
    assert found.choice == Choice()
    assert seen[1] is not None
    assert (seen[1].verdict, seen[1].comparison.fault) == (None, "no memory")


def test_defaults_that_cannot_be_served_or_answer_nothing_end_the_search() -> None:
    with pytest.raises(StartupError, match="no model"):
        ran(World(lambda _, __: 10.0, faults=lambda _: "no model"), [FASTER])
    with pytest.raises(StartupError, match="nothing with 1 requests"):
        ran(World(lambda _, __: 0.0), [FASTER])


def test_one_that_answers_nothing_is_worse_than_all() -> None:
    found, _ = ran(World(lambda choice, _: 0.0 if instances_of(choice) == 2 else 10.0), [FASTER])
    assert found.choice == Choice()


def test_a_step_that_changes_nothing_is_left_out() -> None:
    world = World(lambda choice, _: 20.0 if instances_of(choice) == 2 else 10.0)
    _, seen = ran(world, [FASTER, FASTER])
    assert (seen[2], len(world.asked)) == (None, 3)


def test_of_several_models_each_is_asked_alone_for_its_own_and_all_for_what_they_share() -> None:
    of_b = Step(Change("b", {"batch_buckets": (1, 2)}), ("b",))

    def speed(choice: Choice, _: int) -> float:
        return 10.0 * (1 + (instances_of(choice) == 2) + ("b" in choice.models) + choice.common.get("workers", 0) / 2)  # type: ignore[operator]

    world = World(speed)
    found, _ = ran(world, [FASTER, of_b, OF_ALL], models=("a", "b"))
    assert found.choice == Choice({"workers": 2}, {"a": {"instances": 2, "threads": 1}, "b": {"batch_buckets": (1, 2)}})
    assert [models for _, _, models, _ in world.asked] == [("a", "b"), ("a",), ("b",), ("a", "b"), ("a", "b")]
