"""The shipped monitoring files, and every PromQL expression in them as Prometheus gets it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
GRAFANA = FOLDER / "grafana"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


@dataclass(frozen=True)
class Expression:
    """One expression, where it stands, and the labels that its legend or text shows."""

    place: str
    text: str
    shown: frozenset[str] = frozenset()


def load(name: str) -> Any:
    """Return what a YAML file of the folder holds."""
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    board: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "dat-serve.json").read_text(encoding="utf-8"))
    return board


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, its rows' headings left out."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules(name: str) -> list[dict[str, Any]]:
    """Return the rules of a file."""
    return [rule for group in load(name)["groups"] for rule in group["rules"]]


def rule_expressions() -> list[Expression]:
    """Return the expressions of recording rules and alerts."""
    found = []
    for file in ("rules.yml", "alerts.yml"):
        for rule in rules(file):
            shown = re.findall(r"\$labels\.(\w+)", json.dumps(rule.get("annotations", {})))
            found.append(Expression(f"{file}: {rule.get('alert', rule.get('record'))}", rule["expr"], frozenset(shown)))
    return found


def dashboard_expressions() -> list[Expression]:
    """Return the expressions of panels and annotations, with Grafana's variables filled in."""
    return [
        Expression(place, filled_in(text), frozenset(re.findall(r"{{(\w+)}}", legend)))
        for place, text, legend in _dashboard_expressions()
    ]


def filled_in(text: str, *, chosen: str = ".*") -> str:
    """Return an expression with Grafana's variables filled in; `chosen` stands for what is chosen of each."""
    values = {"$__rate_interval": "1m", **{f"${name}": chosen for name in ("instance", "model", "version")}}
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _dashboard_expressions() -> Iterator[tuple[str, str, str]]:
    for panel in panels():
        for target in panel["targets"]:
            yield f"panel {panel['title']!r}", target["expr"], target["legendFormat"]
    for annotation in dashboard()["annotations"]["list"]:
        yield f"annotation {annotation['name']!r}", annotation["expr"], annotation["titleFormat"]
