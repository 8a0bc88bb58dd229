"""Runs through buffers that are made once: inputs and outputs stay where they are on the device from run to run.

A run of `PlainRunner` lets the runtime take and give arrays, which on the CPU is best. `BoundRunner` keeps, for every
batch size that it meets, device memory for the images and for each output, and host memory for each output that is
read; with CUDA the host's is pinned, which the GPU reads and writes several times faster than other memory.

                 prepare                    run
    images ───────────────► input ──────────────────► outputs ───────────► host copies ──► views for the caller
             (uploads)     (a lane)   (or a graph)   (one set a bucket)   (only those asked for)

A bucket has two lanes, an input buffer each, so that a batch can be uploaded while another runs. A lane is free, or
holds a batch from `prepare` to the end of its `run` or to `discard`.

Invariants: one thread runs, and at most one other prepares meanwhile; a captured graph is only replayed with the very
buffers that it was captured with; what `run` returns are views that the next run of that batch size overwrites, so
the caller copies what it keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.runtime.library import ort
from service.engine.runtime.memory import Memory, is_out_of_memory
from service.engine.types import Outputs, Pixels

_log = logging.getLogger(__name__)

_NO_GRAPH = -1
"""The graph number that lets the runtime neither capture nor replay."""
_LANES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A batch that lies ready to run, once; `run` or `discard` ends it. Compared by identity."""

    images: int
    lane: int
    source: Pixels | None = None


class Runner(Protocol):
    """How a session runs: in two steps, of which the first may be taken while the second of another batch goes on."""

    def prepare(self, images: Pixels) -> Prepared:
        """Put a batch where it will run; the images must stay as they are until it has."""
        ...

    def run(self, prepared: Prepared, outputs: Sequence[str], *, shrink_arena: bool) -> Outputs:
        """Run a prepared batch, and let the runtime hand its spare memory back afterwards, if so asked and possible."""
        ...

    def discard(self, prepared: Prepared) -> None:
        """Give a batch up that was prepared and not run."""
        ...


def run_options(config: Mapping[str, str]) -> Any:
    """Return the runtime's options for one run, which computes no more than the outputs that are asked for."""
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    for key, value in config.items():
        options.add_run_config_entry(key, value)
    return options


class PlainRunner:
    """Every run takes the caller's array and gives arrays of its own."""

    def __init__(self, session: Any, memory: Memory, *, input_name: str) -> None:
        self._session = session
        self._memory = memory
        self._input_name = input_name

    def prepare(self, images: Pixels) -> Prepared:
        """Remember the images."""
        return Prepared(len(images), 0, images)

    def run(self, prepared: Prepared, outputs: Sequence[str], *, shrink_arena: bool) -> Outputs:
        """Run them."""
        options = run_options(self._memory.shrinkage if shrink_arena else {})
        results = self._session.run(list(outputs), {self._input_name: prepared.source}, options)
        return dict(zip(outputs, results, strict=True))

    def discard(self, prepared: Prepared) -> None:
        """Forget them, as the caller does."""


class _Output:
    """One output of one bucket: the device's tensor, the host's, and the latter as an array."""

    def __init__(self, value: Any, memory: Memory) -> None:
        self.value = value
        self._host = memory.on_host(value.shape(), np.float32)
        self._view: NDArray[np.float32] = self._host.numpy()

    def read(self) -> NDArray[np.float32]:
        """Copy what the last run gave to the host, and return it as a view."""
        self._host.update_inplace(self.value)
        return self._view


class _Lane:
    """One input buffer, and the binding that reads it."""

    def __init__(self, session: Any, memory: Memory, input_name: str, shape: Sequence[int]) -> None:
        self.input = memory.on_device(shape, np.uint8)
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input(input_name, self.input)
        self.bound: tuple[str, ...] | None = None
        """The outputs that are bound to their buffers; None where that is not known, or not so."""
        self.holds: Prepared | None = None


class _Bucket:
    """The buffers for one batch size; the second lane is made when it is first wanted."""

    def __init__(self) -> None:
        self.lanes: list[_Lane] = []
        self.outputs: dict[str, _Output] = {}


class BoundRunner:
    """Every run goes through buffers that stay; see the module's drawing.

    `graph_profiles` are the output sets that get a CUDA graph in each lane of each bucket, captured by the second run
    that asks for outputs of the set and replayed from the third; empty for none.
    """

    def __init__(
        self,
        session: Any,
        memory: Memory,
        *,
        input_name: str,
        input_shape: tuple[int, int, int],
        graph_profiles: Sequence[tuple[str, ...]] = (),
    ) -> None:
        self._session = session
        self._memory = memory
        self._input_name = input_name
        self._input_shape = input_shape
        self._profiles = tuple(graph_profiles)
        self._buckets: dict[int, _Bucket] = {}
        self._graph_numbers: dict[tuple[int, int, tuple[str, ...]], int] = {}

    def prepare(self, images: Pixels) -> Prepared:
        """Upload a batch; when this returns, the images are the caller's again.

        Raises ValueError for anything but uint8 images of the model's size, and RuntimeError where both lanes of that
        batch size are taken.
        """
        # The copy below compares the number of elements alone.
        if images.dtype != np.uint8 or images.shape[1:] != self._input_shape:
            raise ValueError(f"a batch is uint8 (images, {self._input_shape}), not {images.dtype} {images.shape}")
        bucket = self._buckets.setdefault(len(images), _Bucket())
        free = next((index for index, lane in enumerate(bucket.lanes) if lane.holds is None), len(bucket.lanes))
        if free == _LANES:
            raise RuntimeError(f"{_LANES} batches of {len(images)} are prepared already; run or discard one first")
        if free == len(bucket.lanes):
            bucket.lanes.append(_Lane(self._session, self._memory, self._input_name, images.shape))
        lane = bucket.lanes[free]
        lane.input.update_inplace(images)
        lane.holds = Prepared(len(images), free)
        return lane.holds

    def discard(self, prepared: Prepared) -> None:
        """Give a batch up that was prepared and not run."""
        self._lane(prepared).holds = None

    def run(self, prepared: Prepared, outputs: Sequence[str], *, shrink_arena: bool) -> Outputs:
        """Run a prepared batch, and return views of the named outputs that hold until the next run of its size.

        Raises ValueError for a batch that was run or discarded before.
        """
        lane, bucket = self._lane(prepared), self._buckets[prepared.images]
        profile = next((profile for profile in self._profiles if set(outputs) <= set(profile)), None)
        # A captured graph works on the very addresses that shrinking would free.
        config = self._memory.shrinkage if shrink_arena and not self._graph_numbers else {}
        try:
            if profile is None:
                self._execute(lane, bucket, tuple(outputs), config)
            elif config or any(name not in bucket.outputs for name in profile):
                self._execute(lane, bucket, profile, config)
            else:
                self._execute_graph(prepared, profile)
            return {name: bucket.outputs[name].read() for name in outputs}
        finally:
            lane.holds = None

    def _lane(self, prepared: Prepared) -> _Lane:
        lane = self._buckets[prepared.images].lanes[prepared.lane]
        if lane.holds is not prepared:
            raise ValueError("this batch was run or discarded before")
        return lane

    def _execute_graph(self, prepared: Prepared, profile: tuple[str, ...]) -> None:
        """Run all of a profile's outputs by their graph, which the first such run captures.

        A graph that cannot be captured is done without, and so are all others from then on.
        """
        lane, bucket = self._lane(prepared), self._buckets[prepared.images]
        key = (prepared.images, prepared.lane, profile)
        number = self._graph_numbers.get(key)
        try:
            self._execute(lane, bucket, profile, graph=number or len(self._graph_numbers) + 1)
        except Exception as error:
            if number is not None or is_out_of_memory(error):
                raise
            _log.warning("running without CUDA graphs, since one could not be captured: %s", error)
            self._profiles = ()
            self._execute(lane, bucket, profile)
        else:
            self._graph_numbers.setdefault(key, len(self._graph_numbers) + 1)

    def _execute(
        self,
        lane: _Lane,
        bucket: _Bucket,
        names: tuple[str, ...],
        config: Mapping[str, str] | None = None,
        *,
        graph: int = _NO_GRAPH,
    ) -> None:
        """Run; outputs that have no buffer yet keep the one that the runtime makes for this run."""
        known = all(name in bucket.outputs for name in names)
        if lane.bound != names:
            self._bind(lane, bucket, names)
        lane.bound = None
        self._session.run_with_iobinding(lane.binding, run_options({**(config or {}), "gpu_graph_id": str(graph)}))
        if known:
            lane.bound = names
            return
        for name, value in zip(names, lane.binding.get_outputs(), strict=True):
            if name not in bucket.outputs:
                bucket.outputs[name] = _Output(value, self._memory)

    def _bind(self, lane: _Lane, bucket: _Bucket, names: tuple[str, ...]) -> None:
        lane.binding.clear_binding_outputs()
        for name in names:
            if name in bucket.outputs:
                lane.binding.bind_ortvalue_output(name, bucket.outputs[name].value)
            else:
                lane.binding.bind_output(name, self._memory.kind, self._memory.index)
