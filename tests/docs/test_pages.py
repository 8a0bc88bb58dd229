"""What the pages name is there: links and their anchors, settings, options, metrics, codes and figures."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from benchmarks import __main__ as benchmarks_command
from export.__main__ import _parser as export_parser
from models.variants import VARIANTS
from service import VERSION, commands
from service.http.answers.schemas import FaultCode
from service.http.problems import all_kinds
from service.settings import CLIENT_API_KEY, Settings, variable_of
from service.telemetry.metrics import Metrics
from tests.docs.pages import BLOCKS, PAGES, ROOT, prose_of

OPERATIONS = ROOT / "docs" / "operations.md"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FOREIGN_OPTIONS = {"--data-binary", "--require-hashes"}
"""Options that pages name and that are other programs'."""
OTHER_NAMES = {"dat_null", "dat_serve", "dat_serve_client", *VARIANTS}
"""What begins like a metric and is none."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Return a page's anchors, as they are made of its headings where the repository is shown."""
    headings = re.findall(r"^#+ +(.*?) *$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose_of(index))}
    pages = {page for page in PAGES if "decisions" not in page.parts} - {index, ROOT / "README.md"}
    assert {str(page.relative_to(ROOT)) for page in pages - listed} == set()


def test_modules_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([\w/]+(?:\.py|/))`", prose_of(ROOT / "docs" / "architecture.md"))
    packages = [
        ROOT,
        *(ROOT / name for name in ("models", "export", "service")),
        *(path for path in (ROOT / "service").rglob("*") if path.is_dir()),
    ]
    assert len(named) > 40
    assert [name for name in named if not any((package / name).exists() for package in packages)] == []


@each_page
def test_variables_that_are_named_exist(page: Path) -> None:
    known = {CLIENT_API_KEY, *map(variable_of, Settings.model_fields)}
    assert set(re.findall(r"\bDAT_[A-Z][A-Z_]*\b", page.read_text(encoding="utf-8"))) - known == set()


@each_page
def test_options_that_are_named_exist(page: Path) -> None:
    """Those on lines that run this project's programs, and where other programs are not the matter, in prose."""
    text = prose_of(page) + "".join(block.text for block in BLOCKS if block.page == page)
    named = set() if "deploy" in page.parts else set(re.findall(r"`(--[a-z][a-z-]+)", text))
    for line in re.findall(r"python -m (?:service|export)[^`\n|#]*", text):
        named |= set(re.findall(r"(?<!\S)--[a-z][a-z-]+", line))
    assert named - our_options() - FOREIGN_OPTIONS == set()


def our_options() -> set[str]:
    """Return the options of every command of this project."""
    parsers = [export_parser()]
    for name in commands.COMMANDS:
        parsers.append(argparse.ArgumentParser())
        commands.load(name).add_arguments(parsers[-1])
    options = {option for parser in parsers for option in parser._option_string_actions}
    measuring = Path(benchmarks_command.__file__).read_text(encoding="utf-8")
    return options | set(re.findall(r'"(--[a-z-]+)"', measuring)) | {"--version", "--help"}


def metric_names() -> set[str]:
    """Return every name that a query can use."""
    families = list(Metrics(buckets=(1,)).registry.collect())
    names = {name for family in families for name in (family.name, *(sample.name for sample in family.samples))}
    for family in families:  # those with labels have no samples before they are counted
        ends = {"counter": ("total",), "histogram": ("bucket", "sum", "count")}.get(family.type, ())
        names |= {f"{family.name}_{end}" for end in ends}
    for source in (
        ROOT / "service" / "metrics.py",
        *sorted((ROOT / "deploy").glob("*.py")),
    ):  # what is read at a scrape
        text = source.read_text(encoding="utf-8")
        names |= set(re.findall(r'GaugeMetricFamily\(\s*"(\w+)"', text))
        names |= {f"{name}_info" for name in re.findall(r'InfoMetricFamily\(\s*"(\w+)"', text)}
    return names


@each_page
def test_metrics_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/.])dat_[a-z0-9_]*[a-z0-9]\b(?![./])", page.read_text(encoding="utf-8")))
    models = {name for name in named if name in OTHER_NAMES}
    assert named - models - metric_names() == set()


def test_every_metric_is_explained() -> None:
    tuning = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in tuning.splitlines() if line.startswith("| `dat_"))
    missing = {
        family.name
        for family in Metrics(buckets=(1,)).registry.collect()
        if family.name.startswith("dat_") and f"`{family.name}" not in table
    }
    assert missing == set()


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


def table_after(heading: str) -> dict[str, str]:
    """Return the first two cells of the rows of the tables in a section of operations.md."""
    text = OPERATIONS.read_text(encoding="utf-8")
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", section[1], re.MULTILINE))


def test_every_code_is_explained_with_its_status_and_no_other_is() -> None:
    codes = table_after("Errors")
    faults = set(get_args(FaultCode.__value__))
    assert set(codes) == set(all_kinds()) | faults
    assert {code: int(codes[code]) for code in all_kinds()} == {code: kind.status for code, kind in all_kinds().items()}


def test_defaults_of_the_limits_are_the_settings_own() -> None:
    shown = dict(re.findall(r"\| `--([a-z-]+)` \| ([^|]*?) \|", OPERATIONS.read_text(encoding="utf-8")))
    units = {"MiB": 2**20, "million": 10**6, "s": 1000}
    for name, default in shown.items():
        value = Settings.model_fields[name.replace("-", "_")].default
        match = re.match(r"([\d,]+)(?: (MiB|million|s)\b)?", default)
        if match is None:
            assert (default, bool(value)) == ("none", False), name
        else:
            assert int(match[1].replace(",", "")) * units.get(match[2], 1) == value, name
    assert len(shown) >= 8


def test_the_changelog_has_the_release() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)


def test_the_front_page_stays_one() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_alert_has_the_section_that_it_names() -> None:
    alerts = (ROOT / "deploy" / "monitoring" / "alerts.yml").read_text(encoding="utf-8")
    named = re.findall(r"runbook: docs/operations\.md#(\S+)", alerts)
    assert len(named) == alerts.count("- alert:")
    assert set(named) - anchors(ROOT / "docs" / "operations.md") == set()
