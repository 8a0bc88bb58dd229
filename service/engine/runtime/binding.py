"""Runs through buffers that are made once: inputs and outputs stay where they are on the device from run to run.

A run of `PlainRunner` lets the runtime take and give arrays, which on the CPU is best. `BoundRunner` keeps, for every
batch size that it meets, device memory for the images and for each output, and host memory for each output that is
read; with CUDA the host's is pinned, which the GPU reads and writes several times faster than other memory. For images
of other shapes than the model's own it does so for the latest `MOST_OTHERS` batches, and captures nothing.

                 upload                   run
    images ─────────────► input ─────────────────► outputs ───────────► host copies ──► views for the caller
                                  (or a graph)                (only those asked for)

Invariants: one thread runs; a captured graph is only replayed with the very buffers that it was captured with; what
`run` returns are views that the next run of that batch size overwrites, so the caller copies what it keeps.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.runtime.library import ort
from service.engine.runtime.memory import Memory, is_out_of_memory
from service.engine.types import Outputs, Pixels

_log = logging.getLogger(__name__)

MOST_OTHERS = 8
"""Batches of images of other shapes than the model's own for which buffers are kept."""
_NO_GRAPH = -1
"""The graph number that lets the runtime neither capture nor replay."""


class Runner(Protocol):
    """How a session runs."""

    def run(self, images: Pixels, outputs: Sequence[str], *, shrink_arena: bool) -> Outputs:
        """Run a batch, and let the runtime hand its spare memory back afterwards, if so asked and possible."""
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

    def run(self, images: Pixels, outputs: Sequence[str], *, shrink_arena: bool) -> Outputs:
        """Run a batch; the arrays are the caller's."""
        options = run_options(self._memory.shrinkage if shrink_arena else {})
        results = self._session.run(list(outputs), {self._input_name: images}, options)
        return dict(zip(outputs, results, strict=True))


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


class _Bucket:
    """The buffers for one batch size, and the binding that reads and writes them."""

    def __init__(self, session: Any, memory: Memory, input_name: str, shape: Sequence[int]) -> None:
        self.input = memory.on_device(shape, np.uint8)
        self.binding = session.io_binding()
        self.binding.bind_ortvalue_input(input_name, self.input)
        self.outputs: dict[str, _Output] = {}
        self.bound: tuple[str, ...] | None = None
        """The outputs that are bound to their buffers; None where that is not known, or not so."""


class BoundRunner:
    """Every run goes through buffers that stay; see the module's drawing.

    `cuda_graph_outputs` get a CUDA graph in each bucket, captured by the second run that asks for none but these, and
    replayed from the third; empty for no graphs.
    """

    def __init__(
        self,
        session: Any,
        memory: Memory,
        *,
        input_name: str,
        input_shape: tuple[int, int, int],
        free_size: bool = False,
        cuda_graph_outputs: tuple[str, ...] = (),
    ) -> None:
        self._session = session
        self._memory = memory
        self._input_name = input_name
        self._input_shape = input_shape
        self._free_size = free_size
        self._cuda_graph_outputs = cuda_graph_outputs
        self._buckets: dict[int, _Bucket] = {}
        self._others: OrderedDict[tuple[int, ...], _Bucket] = OrderedDict()
        """By the shape of the batch, where its images are not of the model's own."""
        self._graph_numbers: dict[int, int] = {}
        """By batch size."""

    def run(self, images: Pixels, outputs: Sequence[str], *, shrink_arena: bool) -> Outputs:
        """Run a batch, and return views of the named outputs that hold until the next run of its size.

        Raises ValueError for anything but uint8 images of the model's size, where that is not free.
        """
        # The upload below compares the number of elements alone.
        if images.dtype != np.uint8 or (images.shape[1:] != self._input_shape and not self._free_size):
            raise ValueError(f"a batch is uint8 (images, {self._input_shape}), not {images.dtype} {images.shape}")
        if images.shape[1:] != self._input_shape:
            return self._run_other(images, outputs, shrink_arena=shrink_arena)
        size, cuda_graph_outputs = len(images), self._cuda_graph_outputs
        if size not in self._buckets:
            self._buckets[size] = _Bucket(self._session, self._memory, self._input_name, images.shape)
        bucket = self._buckets[size]
        bucket.input.update_inplace(images)
        # A captured graph works on the very addresses that shrinking would free.
        config = self._memory.shrinkage if shrink_arena and not self._graph_numbers else {}
        if not set(outputs) <= set(cuda_graph_outputs):
            self._execute(bucket, tuple(outputs), config)
        elif config or not bucket.outputs.keys() >= set(cuda_graph_outputs):
            self._execute(bucket, cuda_graph_outputs, config)
        else:
            self._execute_graph(bucket, size)
        return {name: bucket.outputs[name].read() for name in outputs}

    def _run_other(self, images: Pixels, outputs: Sequence[str], *, shrink_arena: bool) -> Outputs:
        """Run a batch of images of another shape than the model's own."""
        bucket = self._others.pop(images.shape, None) or _Bucket(
            self._session, self._memory, self._input_name, images.shape
        )
        self._others[images.shape] = bucket
        if len(self._others) > MOST_OTHERS:
            self._others.popitem(last=False)
        bucket.input.update_inplace(images)
        # A captured graph works on the very addresses that shrinking would free.
        config = self._memory.shrinkage if shrink_arena and not self._graph_numbers else {}
        try:
            self._execute(bucket, tuple(outputs), config)
        except Exception as error:
            if is_out_of_memory(error):
                self._others.clear()
            raise
        return {name: bucket.outputs[name].read() for name in outputs}

    def _execute_graph(self, bucket: _Bucket, size: int) -> None:
        """Run all outputs that have a graph by it, which the first such run captures.

        A graph that cannot be captured is done without, and so are all others from then on.
        """
        names, number = self._cuda_graph_outputs, self._graph_numbers.get(size)
        try:
            self._execute(bucket, names, graph=number or len(self._graph_numbers) + 1)
        except Exception as error:
            if number is not None or is_out_of_memory(error):
                raise
            _log.warning("running without CUDA graphs, since one could not be captured: %s", error)
            self._cuda_graph_outputs = ()
            self._execute(bucket, names)
        else:
            self._graph_numbers.setdefault(size, len(self._graph_numbers) + 1)

    def _execute(
        self,
        bucket: _Bucket,
        names: tuple[str, ...],
        config: Mapping[str, str] | None = None,
        *,
        graph: int = _NO_GRAPH,
    ) -> None:
        """Run; outputs that have no buffer yet keep the one that the runtime makes for this run."""
        known = all(name in bucket.outputs for name in names)
        if bucket.bound != names:
            self._bind(bucket, names)
        bucket.bound = None
        self._session.run_with_iobinding(bucket.binding, run_options({**(config or {}), "gpu_graph_id": str(graph)}))
        if known:
            bucket.bound = names
            return
        for name, value in zip(names, bucket.binding.get_outputs(), strict=True):
            if name not in bucket.outputs:
                bucket.outputs[name] = _Output(value, self._memory)

    def _bind(self, bucket: _Bucket, names: tuple[str, ...]) -> None:
        bucket.binding.clear_binding_outputs()
        for name in names:
            if name in bucket.outputs:
                bucket.binding.bind_ortvalue_output(name, bucket.outputs[name].value)
            else:
                bucket.binding.bind_output(name, self._memory.kind, self._memory.index)
