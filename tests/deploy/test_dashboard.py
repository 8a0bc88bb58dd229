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


@pytest.mark.parametrize("panel", monitoring.panels(), ids=named)
def test_a_panel_shows_the_servers_that_are_chosen_and_no_others(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        selectors = promql.read(monitoring.filled_in(target["expr"], instance="CHOSEN")).selectors
        assert selectors
        for selector in selectors:
            assert promql.Matcher("instance", "=~", "CHOSEN") in selector.matchers


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
    assert used == set(defined) == {"datasource", "model", "instance"}


def test_grafana_shows_the_model_and_the_servers_of_the_models_that_are_chosen() -> None:
    queries = {each["name"]: each["definition"] for each in monitoring.dashboard()["templating"]["list"][1:]}
    assert queries == {
        "model": "label_values(dat_model_info, name)",
        "instance": 'label_values(dat_model_info{name=~"$model"}, instance)',
    }
    for each in monitoring.dashboard()["templating"]["list"][1:]:
        assert each["query"]["query"] == each["definition"]
