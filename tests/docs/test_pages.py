"""What the pages name is there: links and their anchors, settings, options, metrics, codes and figures."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.__main__ import _parser as benchmarks_parser
from benchmarks.gpu import _parser as gpu_parser
from benchmarks.model_speed import _parser as model_speed_parser
from export.__main__ import _parser as export_parser
from models.variants import VARIANTS
from service import VERSION, commands
from service.http.answers.schemas import FaultCode
from service.http.problems import all_kinds
from service.settings import CLIENT_API_KEY, Settings, option_of, variable_of
from service.telemetry.metrics import Metrics
from tests.docs.pages import BLOCKS, PAGES, ROOT, anchors_of, code_of, commands_of, headings_of, prose_of, rows_of

ARCHITECTURE = ROOT / "docs" / "architecture.md"
OPERATIONS = ROOT / "docs" / "operations.md"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FOREIGN_OPTIONS = {"--data-binary", "--require-hashes"}
"""Options that pages name and that are other programs'."""
OF_RAY = {"dat_replicas"}
"""Metrics that are there on Ray alone, in whose environment `tests/deploy/test_ray.py` reads them."""
OTHER_NAMES = {"dat_null", "dat_operators", "dat_serve", "dat_serve_client", *VARIANTS}
"""What begins like a metric and is none."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            wrong.append(target)
    assert wrong == []


def test_tests_that_marks_of_blocks_name_exist() -> None:
    named = [path for block in BLOCKS for path in re.findall(r"\b(?:tests|deploy)/[\w/.]*\w", block.mark or "")]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose_of(index))}
    pages = {page for page in PAGES if "decisions" not in page.parts} - {index, ROOT / "README.md"}
    assert {str(page.relative_to(ROOT)) for page in pages - listed} == set()


def test_modules_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([\w/]+(?:\.py|/))`", prose_of(ARCHITECTURE))
    packages = [
        ROOT,
        *(ROOT / name for name in ("models", "export", "service")),
        *(path for path in (ROOT / "service").rglob("*") if path.is_dir()),
    ]
    assert len(named) > 40
    assert [name for name in named if not any((package / name).exists() for package in packages)] == []


def test_the_architecture_has_every_room_on_its_floor() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["service"])
    floors = [set(floor.split(" | ")) for floor in layers[1:]]  # without the entry
    table = re.findall(r"^\| (`[^|]+) \|", prose_of(ARCHITECTURE), re.MULTILINE)
    rooms = [name for row in table for name in re.findall(r"`(\w+)(?:/|\.py)`", row)]
    drawn = re.findall(r'class="name".*>(\w+)(?:/|\.py)<', (ROOT / "docs" / "images" / "rooms.svg").read_text())
    for names in (rooms, drawn):
        assert sorted(names) == sorted(set().union(*floors))
        heights = [next(height for height, floor in enumerate(floors) if name in floor) for name in names]
        assert heights == sorted(heights)


@each_page
def test_variables_that_are_named_exist(page: Path) -> None:
    known = {CLIENT_API_KEY, *map(variable_of, Settings.model_fields)}
    assert set(re.findall(r"\bDAT_[A-Z][A-Z_]*\b", page.read_text(encoding="utf-8"))) - known == set()


@each_page
def test_options_that_are_named_exist(page: Path) -> None:
    """Those of commands that run this project's programs, and where other programs are not the matter, in prose."""
    named = set()
    if "deploy" not in page.parts:
        named |= set(re.findall(r"`(--[a-z][a-z0-9-]+)", prose_of(page)))
    lines = [line for block in BLOCKS if block.page == page and block.language == "sh" for line in commands_of(block)]
    lines += [text.split() for text in code_of(prose_of(page))]
    for words in lines:
        if "-m" in words and words[words.index("-m") + 1 :][:1] in (["service"], ["export"]):
            named |= {word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z].*", word)}
    assert named - our_options() - FOREIGN_OPTIONS == set()


def our_options() -> set[str]:
    """Return the options of every command of this project."""
    parsers = [export_parser(), benchmarks_parser(), gpu_parser(), model_speed_parser()]
    for name in commands.COMMANDS:
        parsers.append(argparse.ArgumentParser())
        commands.load(name).add_arguments(parsers[-1])
    return {option for parser in parsers for option in parser._option_string_actions} | {"--version"}


def families() -> list[Metric]:
    """Return every metric of ours that a server shows, but for the times at which series began."""
    metrics = Metrics()
    metrics.watch(lambda: ())
    metrics.watch_versions(lambda: ())
    shown = text_string_to_metric_families(metrics.render().decode())
    return [each for each in shown if each.name.startswith("dat_") and not each.name.endswith("_created")]


ENDS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
"""What the names of the samples of a kind of metric end with."""


@each_page
def test_metrics_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/.])dat_[a-z0-9_]*[a-z0-9]\b(?![./])", page.read_text(encoding="utf-8")))
    samples = {f"{family.name}{end}" for family in families() for end in ("", *ENDS.get(family.type, ()))}
    assert named - OTHER_NAMES - OF_RAY - samples == set()


def test_every_metric_is_explained_and_no_other_is() -> None:
    explained = {name for (cell,) in rows_of(ROOT / "docs" / "tuning.md", "Metric") for name in code_of(cell)}
    counted = {f"{family.name}{'_total' if family.type == 'counter' else ''}" for family in families()}
    assert {name for name in explained if name.startswith("dat_")} == counted


def test_queries_are_prometheus_own_language(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Debian's package prometheus, is not installed")
    queries = [block.text for block in BLOCKS if block.language == "promql"]
    assert queries
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "pages", "rules": rules}]}))
    checked = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_code_is_explained_with_its_status_and_no_other_is() -> None:
    statuses = {code_of(code)[0]: int(status) for code, status in rows_of(OPERATIONS, "Code", "Status")}
    assert statuses == {code: kind.status for code, kind in all_kinds().items()}


def test_every_fault_of_an_image_is_explained_and_no_other_is() -> None:
    explained = {code_of(code)[0] for code, _ in rows_of(OPERATIONS, "Code", "What happened")}
    assert explained == set(get_args(FaultCode.__value__))


def test_defaults_of_the_limits_are_the_settings_own() -> None:
    rows = rows_of(OPERATIONS, "What", "Setting", "Default")
    shown = {option: default for _, setting, default in rows for option in code_of(setting)}
    fields = {option_of(name): field for name, field in Settings.model_fields.items()}
    units = {"MiB": 2**20, "million": 10**6, "s": 1000}
    for option, default in shown.items():
        value = fields[option].default
        match = re.match(r"([\d,]+)(?: (MiB|million|s)\b)?", default)
        if match is None:
            assert (default, bool(value)) == ("none", False), option
        else:
            assert int(match[1].replace(",", "")) * units.get(match[2], 1) == value, option
    assert len(shown) >= 8


def test_the_changelog_has_the_release() -> None:
    releases = [heading.partition(" - ") for heading in headings_of(ROOT / "CHANGELOG.md")]
    (day,) = (day for name, _, day in releases if name == f"[{VERSION}]")
    assert datetime.date.fromisoformat(day)


def test_the_front_page_stays_one() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
