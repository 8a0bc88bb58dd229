from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from service.engine.runtime.binding import MOST_OTHERS, BoundRunner, PlainRunner
from service.engine.runtime.loading import INPUT, open_session
from service.engine.runtime.memory import Memory, is_out_of_memory
from service.engine.types import Outputs, Pixels
from tests.service.engine.onnx_models import OUTPUTS, SHAPE, assert_right, images, write_model

CPU = Memory("cpu", 0)
BOTH = ("logits", "embedding")
SHRINKAGE = "memory.enable_memory_arena_shrinkage"


class Spy:
    """The runtime's session, with every bound run's configuration written down, and a way into its middle."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.graphs: list[int] = []
        self.shrinkage: list[bool] = []
        self.before_run: Callable[[int], None] = lambda graph: None

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        graph = int(options.get_run_config_entry("gpu_graph_id"))
        self.graphs.append(graph)
        try:
            self.shrinkage.append(options.get_run_config_entry(SHRINKAGE) == "cpu:0")
        except RuntimeError:  # the runtime's way to say that there is no such entry
            self.shrinkage.append(False)
        self.before_run(graph)
        self._session.run_with_iobinding(binding, options)


@pytest.fixture
def session(tmp_path: Path) -> Any:
    return open_session(str(write_model(tmp_path / "model.onnx")), [("CPUExecutionProvider", {})], threads=1)


@pytest.fixture
def spy(session: Any) -> Spy:
    return Spy(session)


def bound(session: Any, cuda_graph_outputs: tuple[str, ...] = ()) -> BoundRunner:
    return BoundRunner(session, CPU, input_name=INPUT, input_shape=SHAPE, cuda_graph_outputs=cuda_graph_outputs)


def run(runner: BoundRunner, batch: Pixels, outputs: tuple[str, ...] = BOTH, *, shrink: bool = False) -> Outputs:
    return runner.run(batch, outputs, shrink_arena=shrink)


@pytest.mark.parametrize("cuda_graph_outputs", [(), BOTH, ("logits",)])
def test_bound_runs_give_what_plain_runs_give(session: Any, cuda_graph_outputs: tuple[str, ...]) -> None:
    plain, runner = PlainRunner(session, CPU, input_name=INPUT), bound(session, cuda_graph_outputs)
    order = np.random.default_rng(1)
    for seed in range(60):
        batch = images(int(order.choice([1, 2, 4, 8])), seed)
        outputs = [("logits",), ("embedding",), BOTH, BOTH[::-1]][order.integers(4)]
        wanted = plain.run(batch, outputs, shrink_arena=False)
        given = run(runner, batch, outputs)
        assert list(given) == list(outputs)
        for name in outputs:
            assert given[name].dtype == np.float32
            np.testing.assert_array_equal(given[name], wanted[name])


def test_an_output_left_out_for_a_while_is_not_stale_when_it_comes_back(session: Any) -> None:
    runner = bound(session)
    run(runner, images(2, 1))
    run(runner, images(2, 2), ("logits",))
    batch = images(2, 3)
    assert_right(run(runner, batch, ("embedding",)), batch)


def test_a_smaller_batch_after_a_larger_one_has_only_its_own_rows(session: Any) -> None:
    runner = bound(session)
    run(runner, images(8, 1))
    batch = images(2, 2)
    given = run(runner, batch)
    assert {len(values) for values in given.values()} == {2}
    assert_right(given, batch)


def test_results_hold_until_the_next_run_of_that_size_and_no_longer(session: Any) -> None:
    runner = bound(session)
    first = images(2, 1)
    results = run(runner, first)
    run(runner, images(4, 3))
    assert_right(results, first)
    last = images(2, 4)
    run(runner, last)
    assert_right(results, last)


def test_a_run_that_fails_harms_no_later_one(session: Any, spy: Spy) -> None:
    runner = bound(spy, BOTH)
    run(runner, images(2))

    def fail(graph: int) -> None:
        raise RuntimeError("no")

    for _ in range(3):
        spy.before_run = fail
        with pytest.raises(RuntimeError, match="no"):
            run(runner, images(2))
        spy.before_run = lambda graph: None
        batch = images(2, 5)
        assert_right(run(runner, batch), batch)


@pytest.mark.parametrize("batch", [images(2).astype(np.float32), images(2).reshape(2, 4, 2, 3), images(2)[0]])
def test_a_batch_of_another_type_or_shape_is_refused(session: Any, batch: Pixels) -> None:
    with pytest.raises(ValueError, match="a batch is uint8"):
        run(bound(session), batch)


def test_images_need_not_lie_in_one_piece(session: Any) -> None:
    batch = images(8)[::2]
    assert_right(run(bound(session), batch), batch)


def test_each_bucket_has_a_graph_of_its_own(session: Any, spy: Spy) -> None:
    runner = bound(spy, BOTH)
    for _ in range(3):
        run(runner, images(2), ("logits",))
    assert spy.graphs == [-1, 1, 1]
    for _ in range(3):
        run(runner, images(4), ("embedding",))
    assert spy.graphs[3:] == [-1, 2, 2]
    run(runner, images(2), BOTH)
    assert spy.graphs[6:] == [1]


def test_outputs_that_have_no_graph_go_without(session: Any, spy: Spy) -> None:
    runner = bound(spy, ("logits",))
    for _ in range(3):
        run(runner, images(2), BOTH)
        run(runner, images(2), ("embedding",))
    assert set(spy.graphs) == {-1}
    for _ in range(2):
        batch = images(2, 7)
        assert_right(run(runner, batch, ("logits",)), batch)
    assert spy.graphs[-2:] == [1, 1]


def test_a_graph_that_cannot_be_captured_is_done_without(
    session: Any, spy: Spy, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(graph: int) -> None:
        if graph > 0:
            raise RuntimeError("capture is not supported")

    spy.before_run = refuse
    runner = bound(spy, BOTH)
    for seed in range(3):
        batch = images(2, seed)
        assert_right(run(runner, batch), batch)
    assert spy.graphs == [-1, 1, -1, -1]
    assert "without CUDA graphs, since one could not be captured: capture is not supported" in caplog.text


def test_want_of_memory_does_not_end_the_use_of_graphs(session: Any, spy: Spy) -> None:
    runner = bound(spy, BOTH)
    run(runner, images(2))

    def refuse(graph: int) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    spy.before_run = refuse
    with pytest.raises(RuntimeError, match="allocate"):
        run(runner, images(2))
    spy.before_run = lambda graph: None
    run(runner, images(2))
    assert spy.graphs == [-1, 1, 1]


def test_the_arena_shrinks_when_asked_but_never_under_a_captured_graph(session: Any, spy: Spy) -> None:
    runner = bound(spy, BOTH)
    batch = images(4)
    assert_right(run(runner, batch, shrink=True), batch)
    assert_right(run(runner, batch, shrink=True), batch)
    assert (spy.graphs, spy.shrinkage) == ([-1, -1], [True, True])
    run(runner, batch)
    run(runner, batch, shrink=True)
    assert (spy.graphs[2:], spy.shrinkage[2:]) == ([1, 1], [False, False])


def test_the_runtime_knows_the_arena_that_is_to_shrink(session: Any) -> None:
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="gpu:7"):
        PlainRunner(session, Memory("cuda", 7), input_name=INPUT).run(images(1), OUTPUTS, shrink_arena=True)
    plain = PlainRunner(session, CPU, input_name=INPUT)
    assert_right(plain.run(images(1), OUTPUTS, shrink_arena=True), images(1))


@pytest.mark.parametrize(
    "words",
    [
        "bfc_arena.cc:360 AllocateRawInternal Failed to allocate memory for requested buffer of size 1806336000",
        "bfc_arena.cc:360 AllocateRawInternal Available memory of 20920320 is smaller than requested bytes of 77070336",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_want_of_memory_is_known_by_the_runtimes_words(words: str) -> None:
    assert is_out_of_memory(onnxruntime.capi.onnxruntime_pybind11_state.Fail(words))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("CUDA failure 700: an illegal memory access was encountered"))


def free(session: Any, cuda_graph_outputs: tuple[str, ...] = ()) -> BoundRunner:
    return BoundRunner(
        session, CPU, input_name=INPUT, input_shape=SHAPE, free_size=True, cuda_graph_outputs=cuda_graph_outputs
    )


def of_any_size(tmp_path: Path) -> Any:
    path = write_model(tmp_path / "free.onnx", dims=("batch", "height", "width", 3))
    return open_session(str(path), [("CPUExecutionProvider", {})], threads=1, free_size=True)


def batch_of(size: int, height: int, width: int, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (size, height, width, 3), np.uint8)


def test_batches_of_any_shape_give_what_plain_runs_give_and_capture_nothing(tmp_path: Path) -> None:
    session = of_any_size(tmp_path)
    spy = Spy(session)
    plain, runner = PlainRunner(session, CPU, input_name=INPUT), free(spy, BOTH)
    order = np.random.default_rng(2)
    for seed in range(100):
        batch = batch_of(*order.integers(1, 4, 3).tolist(), seed)
        outputs = [("logits",), BOTH, BOTH[::-1]][order.integers(3)]
        wanted, given = plain.run(batch, outputs, shrink_arena=False), run(runner, batch, outputs)
        assert list(given) == list(outputs)
        for name in outputs:
            np.testing.assert_array_equal(given[name], wanted[name])
    assert len(runner._others) == MOST_OTHERS
    assert set(spy.graphs) == {-1}


def test_other_shapes_leave_the_own_one_its_buffers_and_its_graph(tmp_path: Path) -> None:
    spy = Spy(of_any_size(tmp_path))
    runner = free(spy, BOTH)
    for _ in range(3):
        run(runner, images(2, 1))
    own = runner._buckets[2]
    for side in range(5, 5 + 2 * MOST_OTHERS):
        run(runner, batch_of(2, side, side, side))
    batch = images(2, 3)
    assert_right(run(runner, batch), batch)
    assert runner._buckets == {2: own}
    assert [graph for graph in spy.graphs if graph != -1] == [1, 1, 1]


def test_buffers_of_other_shapes_are_let_go_of_when_memory_runs_out(tmp_path: Path) -> None:
    spy = Spy(of_any_size(tmp_path))
    runner = free(spy)
    run(runner, batch_of(1, 5, 5, 0))

    def no_memory(_: int) -> None:
        raise MemoryError

    spy.before_run = no_memory
    with pytest.raises(MemoryError):
        run(runner, batch_of(1, 6, 6, 0))
    assert not runner._others


def test_a_runner_of_one_size_refuses_another(session: Any) -> None:
    with pytest.raises(ValueError, match=r"a batch is uint8 \(images"):
        run(bound(session), batch_of(1, 5, 5, 0))
