"""docker-compose.yml: valid, hardened, with time to drain, and with names that exist on both sides."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.processes import supervisor
from service.settings import Settings, load_settings, variable_of
from tests.deploy import monitoring
from tests.deploy.monitoring import GRAFANA, ROOT
from tests.docs.pages import blocks_of, commands_of, rows_of

FILE = ROOT / "docker-compose.yml"
PAGE = ROOT / "docs" / "deploy" / "compose.md"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("serve", "serve-cuda")
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<how>[-+])(?P<word>(?:[^{}]|\$\{[^{}]*\})*))?\}")

services = pytest.mark.parametrize("name", SERVICES)
ours = pytest.mark.parametrize("name", OURS)


def interpolated(text: str, variables: Mapping[str, str] | None = None) -> str:
    """Return what compose makes of a value: `:-` and `:+` are all that the file uses."""

    def value(match: re.Match[str]) -> str:
        given = (variables or {}).get(match["name"], "")
        word = _VARIABLE.sub(value, match["word"] or "")
        if match["how"] == "+":
            return word if given else ""
        return given or word

    made = _VARIABLE.sub(value, text)
    assert "$" not in made
    return made


def environment(name: str, **variables: str) -> dict[str, str]:
    """Return a service's environment under those variables of the caller's."""
    return {key: interpolated(value, variables) for key, value in SERVICES[name]["environment"].items()}


def test_the_file_is_what_compose_takes() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cpu_is_the_default_and_the_rest_is_asked_for() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert profiles == {
        "serve": None,
        "serve-cuda": ["cuda"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


def test_only_the_cuda_service_reserves_a_gpu() -> None:
    reserving = {name: s["deploy"]["resources"].get("reservations") for name, s in SERVICES.items()}
    gpu = {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}
    assert reserving == {"serve": None, "serve-cuda": gpu, "prometheus": None, "grafana": None}


@services
def test_a_container_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert {"memory", "pids", "cpus"} == set(service["deploy"]["resources"]["limits"])
    assert service["restart"] == "unless-stopped"
    for mount in service.get("tmpfs", ()):
        assert {"noexec", "nosuid", "nodev"} < set(mount.partition(":")[2].split(","))


@services
def test_nobody_else_on_the_network_reaches_a_port_unless_asked_for(name: str) -> None:
    for port in SERVICES[name]["ports"]:
        assert interpolated(port).startswith("127.0.0.1:")


def test_no_two_services_want_the_same_port() -> None:
    ports = [interpolated(port).split(":")[1] for service in SERVICES.values() for port in service["ports"]]
    assert len(ports) == len(set(ports)) > len(SERVICES)


@ours
def test_docker_waits_until_the_drain_is_over(name: str) -> None:
    grace = re.fullmatch(r"(\d+)s", SERVICES[name]["stop_grace_period"])
    assert grace is not None
    drain_s = Settings.model_fields["drain_timeout_ms"].default / 1000
    assert int(grace[1]) > drain_s + supervisor._DRAINED_S


@ours
def test_the_environment_is_settings_that_the_service_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = environment(name)
    assert set(given) <= {variable_of(field) for field in Settings.model_fields}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    settings = load_settings(environment=given)
    assert settings.devices == ("cuda" if name == "serve-cuda" else "cpu",)
    assert settings.threads == 0
    assert settings.repository == Path("/models")


@ours
def test_a_limit_of_processors_is_the_number_of_threads(name: str) -> None:
    limit = SERVICES[name]["deploy"]["resources"]["limits"]["cpus"]
    for count, expected in (("", "0"), ("4", "4")):
        assert interpolated(limit, {"SERVE_CPUS": count}) == expected
        assert environment(name, SERVE_CPUS=count)["DAT_THREADS"] == expected


@ours
@pytest.mark.parametrize(("processors", "threads"), [("1.5", 2), ("0.25", 1), ("2.0", 2)])
def test_a_limit_of_a_part_of_a_processor_is_a_thread_of_its_own(
    name: str, processors: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAT_THREADS", environment(name, SERVE_CPUS=processors)["DAT_THREADS"])
    assert load_settings().threads == threads


@ours
def test_a_repository_of_ones_own_is_mounted_and_served_in_place_of_the_images(name: str) -> None:
    mount = SERVICES[name]["volumes"][0]
    assert mount["read_only"] is True
    assert interpolated(mount["source"]) == "/dev/null"
    assert interpolated(mount["source"], {"SERVE_MODELS": "/srv/models"}) == "/srv/models"
    assert environment(name, SERVE_MODELS="/srv/models")["DAT_REPOSITORY"] == mount["target"]


@ours
def test_a_repository_elsewhere_is_copied_to_the_folder_that_is_named(name: str) -> None:
    mount = SERVICES[name]["volumes"][2]
    given = {"SERVE_REPOSITORY": "s3://models/dat", "SERVE_CACHE": "/srv/copies", "SERVE_MODELS": "/srv/models"}
    assert interpolated(mount["source"], given) == "/srv/copies"
    assert environment(name, **given)["DAT_REPOSITORY"] == "s3://models/dat"
    assert environment(name, **given)["DAT_REPOSITORY_CACHE"] == mount["target"]
    assert not mount.get("read_only")
    assert environment(name)["DAT_REPOSITORY_CACHE"] == ""


@ours
def test_a_settings_file_is_mounted_and_read_where_there_is_one(name: str) -> None:
    mount = SERVICES[name]["volumes"][1]
    assert mount["read_only"] is True
    assert interpolated(mount["source"]) == "/dev/null"
    assert interpolated(mount["source"], {"SERVE_SETTINGS": "./settings.toml"}) == "./settings.toml"
    assert environment(name, SERVE_SETTINGS="./settings.toml")["DAT_SETTINGS"] == mount["target"]
    assert environment(name)["DAT_SETTINGS"] == ""  # which the service takes for none


@ours
def test_the_service_is_built_from_this_checkout(name: str) -> None:
    target = "cuda" if name == "serve-cuda" else "cpu"
    assert SERVICES[name]["build"] == {"context": ".", "target": target, "args": {"EXTRAS": "${SERVE_EXTRAS:-}"}}


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_watches_is_of_a_version(name: str) -> None:
    assert re.fullmatch(r"docker\.io/[\w./-]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_is_mounted_is_there_and_nobody_writes_to_it(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_prometheus_asks_our_services_on_their_port() -> None:
    (job,) = [job for job in monitoring.load("prometheus.yml")["scrape_configs"] if job["job_name"] == "dat-serve"]
    (names,) = job["dns_sd_configs"]
    assert tuple(names["names"]) == OURS
    for name in OURS:
        assert any(port.endswith(f":{names['port']}") for port in SERVICES[name]["ports"])


def test_prometheus_finds_its_rules_where_they_are_mounted() -> None:
    mounted = dict(volume.split(":")[1::-1] for volume in SERVICES["prometheus"]["volumes"])
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]
    for file in ("prometheus.yml", *monitoring.load("prometheus.yml")["rule_files"]):
        assert mounted[f"/etc/prometheus/{file}"] == f"./deploy/monitoring/{file}"


def test_grafana_finds_its_source_and_its_dashboard_where_they_are() -> None:
    mounted = dict(volume.split(":")[1::-1] for volume in SERVICES["grafana"]["volumes"])
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((GRAFANA / "providers" / "dat-serve.yml").read_text())["providers"]
    dashboards = provider["options"]["path"]
    assert mounted[dashboards] == "./deploy/monitoring/grafana/dashboards"
    assert mounted["/etc/grafana/provisioning/datasources"] == "./deploy/monitoring/grafana/datasources"
    assert mounted["/etc/grafana/provisioning/dashboards"] == "./deploy/monitoring/grafana/providers"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / mounted[dashboards] / Path(home).name).exists()
    interval = monitoring.load("prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_grafana_has_no_account_with_a_known_password() -> None:
    settings = SERVICES["grafana"]["environment"]
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_the_page_explains_every_variable_and_its_default() -> None:
    used = {(m["name"], m["word"]) for m in _VARIABLE.finditer(FILE.read_text(encoding="utf-8")) if m["how"] == "-"}
    explained = {(name.strip("`"), default.strip("`")) for name, default in rows_of(PAGE, "Variable", "Default")}
    assert explained == {(name, "" if word == "/dev/null" or "$" in word else word) for name, word in used}


def test_the_pages_commands_name_profiles_and_services_that_there_are() -> None:
    (block,) = (block for block in blocks_of(PAGE) if block.language == "sh")
    lines = commands_of(block)
    assert len(lines) == 5
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    for line in lines:
        assert line[:2] == ["docker", "compose"]
        words = line[2:]
        while words[0] == "--profile":
            assert words[1] in profiles
            words = words[2:]
        assert words[0] in ("up", "down")
        assert {word for word in words[1:] if not word.startswith("-")} <= set(SERVICES)
