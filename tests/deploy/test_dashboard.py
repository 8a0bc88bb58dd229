"""Grafana finds the dashboard, and everybody can read it: data from where it is, units, words, nothing over another."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from service.serving.states import ModelState
from tests.deploy import monitoring, promql
from tests.deploy.monitoring import GRAFANA

COLUMNS = 24
DRAWN = ("stat", "timeseries")
"""Kinds of panels whose values have a unit."""


def named(panel: dict[str, Any]) -> str:
    return str(panel["title"])


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a document."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(child)


def test_panels_can_be_told_apart() -> None:
    board = monitoring.dashboard()
    assert max(Counter(panel["id"] for panel in board["panels"]).values()) == 1
    assert max(Counter(map(named, monitoring.panels())).values()) == 1


def test_no_panel_lies_over_another_or_beyond_the_page() -> None:
    places = [panel["gridPos"] for panel in monitoring.dashboard()["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= COLUMNS
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@pytest.mark.parametrize("panel", monitoring.panels(), ids=named)
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith((".", "`."))
    if panel["type"] in DRAWN:
        assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["legendFormat"] or panel["type"] == "table"


OF_NO_MODEL = re.compile(
    r"process_\w+|dat_requests_in_flight|dat_abandoned_decodes|dat_key_requests_total|dat_sampled_images_total"
)
"""Metrics of a server's processes, and of its callers."""
OF_NO_VERSION = re.compile(r"dat_default_version|dat_model_loads_total|dat_model_load_\w+|dat_last_load_\w+")
"""Metrics of all versions of a model."""


@pytest.mark.parametrize("panel", monitoring.panels(), ids=named)
def test_a_panel_shows_the_servers_models_and_versions_that_are_chosen_and_no_others(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        selectors = promql.read(monitoring.filled_in(target["expr"], chosen="CHOSEN")).selectors
        assert selectors
        for selector in selectors:
            by = {"instance", "model", "version"}
            if OF_NO_MODEL.fullmatch(selector.metric):
                by = {"instance"}
            elif OF_NO_VERSION.fullmatch(selector.metric):
                by = {"instance", "model"}
            assert {m.label for m in selector.matchers if (m.operator, m.value) == ("=~", "CHOSEN")} == by


def test_data_come_from_the_source_that_is_chosen() -> None:
    board = monitoring.dashboard()
    sources = [node["datasource"] for node in nodes(board) if "datasource" in node]
    assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources)
    for panel in monitoring.panels():
        assert "datasource" in panel
    (variable,) = [each for each in board["templating"]["list"] if each["name"] == "datasource"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)


def test_variables_are_all_there_and_all_used() -> None:
    board = monitoring.dashboard()
    defined = [variable["name"] for variable in board["templating"]["list"]]
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps({**board, "description": ""}))) - {"__all", "__rate_interval"}
    assert used == set(defined) == {"datasource", "model", "version", "instance"}


def test_grafana_offers_the_models_their_versions_and_the_servers_that_have_them() -> None:
    variables = {each["name"]: each for each in monitoring.dashboard()["templating"]["list"][1:]}
    assert {name: each["definition"] for name, each in variables.items()} == {
        "model": "label_values(dat_model_state, model)",
        "version": 'label_values(dat_model_state{model=~"$model"}, version)',
        "instance": 'label_values(dat_model_state{model=~"$model"}, instance)',
    }
    for each in variables.values():
        assert each["query"]["query"] == each["definition"]
    # All is what came to no model, too, which a list of all models would leave out.
    assert variables["model"]["allValue"] == variables["version"]["allValue"] == ".*"


def test_states_are_drawn_by_their_names() -> None:
    (panel,) = [panel for panel in monitoring.panels() if panel["type"] == "state-timeline"]
    (target,) = panel["targets"]
    numbers = dict(re.findall(r'(\d) \* dat_model_state\{state="(\w+)"', target["expr"]))
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    assert {number: shown["text"] for number, shown in mapping["options"].items()} == numbers
    assert set(numbers.values()) == {state.value for state in ModelState}
