"""Metrics that are read at every scrape, from what the processes share anyway, rather than counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from service.engine.types import EngineState
from service.model.manifest import Manifest

OF_MODEL = ("model", "version")
"""Labels of what is of one version of a model."""


class EngineGauges(Protocol):
    """What is read from an engine whenever the metrics are."""

    @property
    def states(self) -> Sequence[EngineState]: ...  # noqa: D102
    @property
    def queue_depth(self) -> int: ...  # noqa: D102
    @property
    def slots_in_use(self) -> int: ...  # noqa: D102


class ModelGauges(Protocol):
    """What is read of a version of a model that takes work."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def manifest(self) -> Manifest: ...  # noqa: D102
    @property
    def engine(self) -> EngineGauges: ...  # noqa: D102


class ParityGauge(Protocol):
    """What is read of a comparison with the CPU."""

    @property
    def error(self) -> float: ...  # noqa: D102
    @property
    def tolerance(self) -> float: ...  # noqa: D102


class VersionGauges(Protocol):
    """What is read of any version of a model, loaded or not."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def is_default(self) -> bool: ...  # noqa: D102
    @property
    def graphs(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def parity(self) -> ParityGauge | None: ...  # noqa: D102


class ReadAtScrape(Collector):
    """Metrics that `read` makes at every scrape."""

    def __init__(self, read: Callable[[], Iterator[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are."""
        return self._read()


def model_facts(models: Iterable[ModelGauges]) -> Iterator[Metric]:
    """Yield which versions of which models take work."""
    family = InfoMetricFamily("dat_model", "A version of a model that takes work.", labels=OF_MODEL)
    for each in models:
        manifest = each.manifest
        facts = {"variant": manifest.variant, "precision": manifest.precision}
        family.add_metric((each.name, str(each.version)), facts)
    yield family


def engine_gauges(models: Iterable[ModelGauges]) -> Iterator[Metric]:
    """Yield what the engines of each version hold and how they are."""
    queued = GaugeMetricFamily("dat_queued_images", "Images that wait for a device, or run.", labels=OF_MODEL)
    admitted = GaugeMetricFamily("dat_admitted_images", "Images admitted and not yet answered.", labels=OF_MODEL)
    states = GaugeMetricFamily("dat_engine_state", "Engines in each state.", labels=(*OF_MODEL, "state"))
    for each in models:
        labels, engine = (each.name, str(each.version)), each.engine
        queued.add_metric(labels, engine.queue_depth)
        admitted.add_metric(labels, engine.slots_in_use)
        present = list(engine.states)
        for state in EngineState:
            states.add_metric((*labels, state.value), present.count(state))
    yield from (queued, admitted, states)


def version_gauges(versions: Iterable[VersionGauges]) -> Iterator[Metric]:
    """Yield the state of each version, which one is a model's default, and how far its devices are from the CPU."""
    states = GaugeMetricFamily(
        "dat_model_state", "1 for the state that a version of a model is in.", labels=(*OF_MODEL, "state")
    )
    defaults = GaugeMetricFamily(
        "dat_default_version", "The version that answers where a model is asked for without one.", labels=("model",)
    )
    graphs = GaugeMetricFamily(
        "dat_model_graphs", "Devices that run each form of a version's graph.", labels=(*OF_MODEL, "graph")
    )
    errors = GaugeMetricFamily(
        "dat_parity_error",
        "Relative error of a version's device to the CPU at its load, in the worst output; absent on the CPU.",
        labels=OF_MODEL,
    )
    tolerances = GaugeMetricFamily(
        "dat_parity_tolerance", "The relative error from which on a version is refused.", labels=OF_MODEL
    )
    for each in versions:
        labels = (each.name, str(each.version))
        states.add_metric((*labels, each.state), 1)
        if each.is_default:
            defaults.add_metric((each.name,), each.version)
        for graph, devices in Counter(each.graphs).items():
            graphs.add_metric((*labels, graph), devices)
        if each.parity is not None:
            errors.add_metric(labels, each.parity.error)
            tolerances.add_metric(labels, each.parity.tolerance)
    yield from (states, defaults, graphs, errors, tolerances)


def process_metrics(pids: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the usual metrics of processes, with the process's name as a label."""
    families: dict[str, Metric] = {}
    for name, pid in pids.items():
        for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, sample.labels | {"process": name}, sample.value)
    yield from families.values()
