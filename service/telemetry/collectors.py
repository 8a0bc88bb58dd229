"""Metrics that are read at every scrape, from what the processes share anyway, rather than counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from service.engine.types import EngineState
from service.model.manifest import Manifest


class EngineGauges(Protocol):
    """What is read from an engine whenever the metrics are."""

    @property
    def states(self) -> Sequence[EngineState]: ...  # noqa: D102
    @property
    def queue_depth(self) -> int: ...  # noqa: D102
    @property
    def slots_in_use(self) -> int: ...  # noqa: D102


class ReadAtScrape(Collector):
    """Metrics that `read` makes at every scrape."""

    def __init__(self, read: Callable[[], Iterator[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are."""
        return self._read()


def model_facts(manifest: Manifest) -> Iterator[Metric]:
    """Yield which model is served."""
    facts = {
        "name": manifest.name,
        "version": str(manifest.version),
        "variant": manifest.variant,
        "precision": manifest.precision,
    }
    yield InfoMetricFamily("dat_model", "The model that is served.", facts)


def engine_gauges(engine: EngineGauges) -> Iterator[Metric]:
    """Yield what an engine holds and how it is."""
    yield GaugeMetricFamily("dat_queued_images", "Images that wait for a device, or run.", engine.queue_depth)
    yield GaugeMetricFamily("dat_admitted_images", "Images admitted and not yet answered.", engine.slots_in_use)
    states = GaugeMetricFamily("dat_engine_state", "Engines in each state.", labels=("state",))
    present = list(engine.states)
    for state in EngineState:
        states.add_metric((state.value,), present.count(state))
    yield states


def process_metrics(pids: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the usual metrics of processes, with the process's name as a label."""
    families: dict[str, Metric] = {}
    for name, pid in pids.items():
        for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, sample.labels | {"process": name}, sample.value)
    yield from families.values()
