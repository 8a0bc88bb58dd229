"""Prometheus takes the shipped files, the alerts fire when they should, and all they name is what a server tells."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.engine.core import DropReason
from service.engine.types import EngineState
from service.http.app import interface
from service.http.problems import all_kinds
from service.http.routes import classify, explain, features
from service.http.routes.v2 import infer
from service.serving.states import ModelState, Parity, VersionStatus
from service.telemetry.metrics import Metrics
from tests.api_keys import entry_of
from tests.deploy import monitoring, promql
from tests.deploy.monitoring import FOLDER, PROMTOOL, ROOT, needs_promtool
from tests.docs.pages import anchors_of
from tests.integration.conftest import service_process
from tests.service.conftest import repository as repository
from tests.service.pictures import photo

OF_TARGETS = {"job", "instance", "service"}
"""Labels that Prometheus adds to all that it scrapes."""
OF_RAY = {"replica"}
"""Labels that series have on Ray alone (`deploy.ray_metrics`)."""
OF_PROMETHEUS = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity", "model"}}
"""Metrics that are Prometheus's own, and their labels."""

Samples = Mapping[str, Mapping[str, set[str]]]
"""The values that were seen, by metric and label."""


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def samples_of(text: str) -> Samples:
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = seen[sample.name]
            for label, value in sample.labels.items():
                labels[label].add(value)
    return seen


@pytest.fixture(scope="module")
def scrapes(repository: Path) -> tuple[str, str]:
    """What a server of several processes tells at its start, and after answers and refusals of each kind."""
    entry = entry_of("secret", "shop") + ":rate=0.001:burst=3"
    with service_process(
        repository, "--workers", "2", "--threads", "1", "--api-keys", entry, "--class-metrics", "2"
    ) as process:
        url = f"http://127.0.0.1:{process.port}"
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}) as client:
            first = client.get("/metrics").raise_for_status().text
            statuses = [
                client.post(path, content=content, headers={"Content-Type": "image/png"}).status_code
                for path, content in (
                    ("/v1/classify", photo()),
                    ("/v1/features", photo()),
                    ("/v1/classify", b"no image"),
                    ("/v1/classify", photo()),
                )
            ]
            assert statuses == [200, 200, 422, 429]
            return first, client.get("/metrics").raise_for_status().text


@pytest.fixture(scope="module")
def told(scrapes: tuple[str, str]) -> Samples:
    """What a server tells after all that, and after failures.

    Failures are counted here, by the object that counts them there: no server fails on demand.
    """
    live = samples_of(scrapes[1])
    failing = Metrics()
    model = failing.of_model("tiny", 1)
    model.batch_failed(bucket=1, images=1)
    for reason in DropReason:
        model.dropped(reason, 1)
    for outcome in ("written", "dropped", "failed"):
        failing.images_sampled(outcome, 1)
    for outcome in ("loaded", "failed", "unloaded"):
        failing.load_ended(model="tiny", outcome=outcome)
    failing.watch_versions(lambda: [VersionStatus("tiny", 1, ModelState.FAILED, is_default=True, parity=Parity(1, 1))])
    failed = samples_of(failing.render().decode())
    both: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for seen in (failed, live):
        for metric, labels in seen.items():
            for label, values in labels.items():
                both[metric][label] |= values
            both[metric]  # one without labels, too
    for rule in monitoring.rules("rules.yml"):
        for label in promql.read(rule["expr"]).grouping - {"le"}:
            both[rule["record"]][label]
    return {metric: dict(labels) for metric, labels in both.items()}


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_every_alert_is_shown_firing_and_not_firing() -> None:
    fires: dict[str, set[bool]] = defaultdict(set)
    for case in monitoring.load("alerts_test.yml")["tests"]:
        for expected in case["alert_rule_test"]:
            fires[expected["alertname"]].add(bool(expected["exp_alerts"]))
    assert fires == {rule["alert"]: {True, False} for rule in monitoring.rules("alerts.yml")}


@pytest.mark.parametrize("rule", monitoring.rules("alerts.yml"), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors_of(ROOT / page)


@needs_promtool
def test_the_dashboards_expressions_are_valid(tmp_path: Path) -> None:
    found = monitoring.dashboard_expressions()
    recorded = [{"record": f"panel:{n}", "expr": each.text} for n, each in enumerate(found)]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": recorded}]}))  # JSON is YAML
    promtool("check", "rules", str(file))


@pytest.mark.parametrize(
    "expression",
    monitoring.rule_expressions() + monitoring.dashboard_expressions(),
    ids=lambda expression: expression.place,
)
def test_what_an_expression_names_is_what_a_server_tells(expression: monitoring.Expression, told: Samples) -> None:
    query = promql.read(expression.text)
    assert query.selectors
    known = OF_TARGETS | OF_RAY
    for selector in query.selectors:
        metric = selector.metric
        assert metric in told or metric in OF_PROMETHEUS, f"there is no metric {metric}"
        labels = OF_PROMETHEUS[metric] if metric in OF_PROMETHEUS else set(told[metric])
        known |= labels
        for matcher in selector.matchers:
            assert matcher.label in labels | OF_TARGETS, f"{metric} has no label {matcher.label}"
            if matcher.label in ("code", "outcome", "state", "stage", "reason"):
                assert set(matcher.alternatives()) <= values_of(matcher.label, told[metric]), matcher
    assert query.grouping <= known
    assert expression.shown <= (query.grouping or known) | OF_TARGETS


@pytest.mark.parametrize(
    "expression",
    [each for each in monitoring.rule_expressions() if "increase(" in each.text],
    ids=lambda expression: expression.place,
)
def test_what_an_alert_looks_for_a_rise_in_is_told_as_0_at_the_start(
    expression: monitoring.Expression, scrapes: tuple[str, str]
) -> None:
    increasing = re.findall(r"increase\((\w+(?:{[^}]*})?)\[", expression.text)
    assert increasing
    for (selector,) in (promql.read(each).selectors for each in increasing):
        wanted = {m.label: m.alternatives() for m in selector.matchers}
        shown = [
            sample.value
            for family in text_string_to_metric_families(scrapes[0])
            for sample in family.samples
            if sample.name == selector.metric and all(sample.labels[label] in wanted[label] for label in wanted)
        ]
        assert shown
        assert set(shown) == {0}


def values_of(label: str, seen: Mapping[str, set[str]]) -> set[str]:
    """The values that a label can have: those of a closed list of the service's, besides those that were seen."""
    states = {state.value for kind in (EngineState, ModelState) for state in kind}
    closed = {"code": {*all_kinds(), "ok"}, "state": states}
    return seen.get(label, set()) | closed.get(label, set())


def test_the_requests_that_count_are_those_that_run_the_model() -> None:
    expressions = monitoring.rule_expressions() + monitoring.dashboard_expressions()
    selectors = [selector for each in expressions for selector in promql.read(each.text).selectors]
    (pattern,) = {m.value for s in selectors for m in s.matchers if m.label == "route"}
    inference = {route.path for module in (classify, explain, features, infer) for route in module.router.routes}  # type: ignore[attr-defined]
    others = {*interface()["paths"], "/docs", "/openapi.json", "/problems/{code}", "unmatched"} - inference
    assert len(inference) == 5
    assert {path for path in inference | others if re.fullmatch(pattern, path)} == inference


@pytest.mark.parametrize(
    ("expression", "metrics", "matchers", "grouping"),
    [
        ("up", {"up"}, set(), set()),
        (
            'sum by (le, job) (rate(a_b{x="1,}", y=~"2|3"}[5m])) > 0',
            {"a_b"},
            {("x", "1,}"), ("y", "2|3")},
            {"le", "job"},
        ),
        ('a:b / on (c) group_left () d{e!="f"} and absent(g)', {"a:b", "d", "g"}, {("e", "f")}, {"c"}),
        ("sum(h) by (i) or vector(0) unless time() - j > 1.5e3", {"h", "j"}, set(), {"i"}),
    ],
)
def test_expressions_are_read(
    expression: str, metrics: set[str], matchers: set[tuple[str, str]], grouping: set[str]
) -> None:
    query = promql.read(expression)
    assert query.metrics == metrics
    assert {(m.label, m.value) for s in query.selectors for m in s.matchers} == matchers
    assert query.grouping == grouping
