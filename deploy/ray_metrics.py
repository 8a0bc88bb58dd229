"""The metrics of all replicas, told by any of them: Ray's proxies send a scrape to whichever replica they like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray import serve

from service.telemetry.metrics import Metrics

GATHER_TIMEOUT_S = 3.0
"""For all replicas' metrics together; Prometheus itself waits 10 s unless told otherwise."""


class ReplicaMetrics(Metrics):
    """One replica's metrics, rendered together with all others' as series of the label `replica`."""

    def render_own(self) -> tuple[str, str]:
        """Return this replica's name and its own metrics as text."""
        return serve.get_replica_context().replica_id.unique_id, super().render().decode()

    def render(self) -> bytes:
        """Return the metrics of every replica that answers in time, and how many did not; not on an event loop."""
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        answers = handle.broadcast("own_metrics").results(timeout_s=GATHER_TIMEOUT_S, return_exceptions=True)
        texts = dict(answer for answer in answers if not isinstance(answer, BaseException))
        return together(texts, silent=len(answers) - len(texts))


def together(texts: Mapping[str, str], *, silent: int) -> bytes:
    """Return the metrics of several replicas, by their names, as one text; `silent` is how many more there are."""
    return generate_latest(_Together(texts, silent))


class _Together(Collector):
    def __init__(self, texts: Mapping[str, str], silent: int) -> None:
        self._texts = texts
        self._silent = silent

    def collect(self) -> Iterator[Metric]:
        replicas = GaugeMetricFamily(
            "dat_replicas", "Replicas on Ray, by whether their metrics are among these.", labels=("shown",)
        )
        replicas.add_metric(("true",), len(self._texts))
        replicas.add_metric(("false",), self._silent)
        yield replicas
        families: dict[str, Metric] = {}
        for replica, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text):
                shown = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    shown.samples.append(sample._replace(labels=sample.labels | {"replica": replica}))
        yield from families.values()
