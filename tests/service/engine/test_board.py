from __future__ import annotations

import os

import pytest

from service.engine.board import Board
from service.engine.types import EngineState


def test_the_board_is_one_for_all_and_empty_at_first() -> None:
    board, descriptor = Board.create(workers=2, engines=9)
    other = Board(workers=2, engines=9, descriptor=descriptor)
    os.close(descriptor)
    assert [row.state for row in other.engines] == [EngineState.DEAD] * 9
    assert (other.admitted, other.waiting(8), other.images_per_s) == (0, 0, None)
    for worker in board.workers:
        worker.admitted, worker.admitted_bulk_pixels, worker.answered_pixels = 3, 1, 10
        worker.waiting[8] = 2
    board.engines[8].state, board.engines[8].busy_since_s = EngineState.READY, 1.5
    board.engines[1].images_per_s, board.engines[8].images_per_s = 20.0, 30.0
    assert (other.admitted, other.waiting(8), other.waiting(7)) == (6, 4, 0)
    assert (other.admitted_bulk_pixels, other.answered_pixels, other.images_per_s) == (2, 20, 50.0)
    assert (other.engines[8].state, other.engines[8].busy_since_s) == (EngineState.READY, 1.5)
    board.engines[8].clear()
    assert (other.engines[8].state, other.engines[8].busy_since_s) == (EngineState.DEAD, 0)
    board.workers[0].clear()
    assert (other.admitted, other.waiting(8)) == (3, 2)


def test_a_board_of_this_process_alone_is_empty_too() -> None:
    board = Board(workers=1, engines=1)
    assert (board.admitted, board.images_per_s, board.engines[0].state) == (0, None, EngineState.DEAD)
    assert board.engines[0].is_well(0.0, hang_after_s=60.0)


@pytest.mark.parametrize(
    ("failures", "failed_s", "busy_since_s", "now_s", "is_well"),
    [
        (2, 100.0, 0.0, 100.0, True),
        (3, 100.0, 0.0, 129.0, False),
        (3, 100.0, 0.0, 130.0, True),
        (0, 0.0, 100.0, 159.0, True),
        (0, 0.0, 100.0, 160.0, False),
    ],
    ids=["two failures", "three failures", "another chance", "a long step", "a hanging step"],
)
def test_an_engine_that_hangs_or_fails_in_a_row_is_not_well(
    failures: int, failed_s: float, busy_since_s: float, now_s: float, is_well: bool
) -> None:
    row = Board(workers=1, engines=1).engines[0]
    row.failures_in_a_row, row.last_failure_s, row.busy_since_s = failures, failed_s, busy_since_s
    assert row.is_well(now_s, hang_after_s=60.0) is is_well
