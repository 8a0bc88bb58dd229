"""What a cloud's platform says of the port and the paths, and what that goes before."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import SettingsError
from service.settings import Settings, load_settings, variable_of
from service.settings_cloud import VertexRoutes, platform_values, vertex_routes
from service.settings_fields import OWN_PLACES

VARIABLES = ("SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*map(variable_of, Settings.model_fields), *VARIABLES):
        monkeypatch.delenv(name, raising=False)


def listening(settings: Settings) -> tuple[str, int]:
    return settings.host, settings.port


@pytest.mark.parametrize(("cloud", "variable"), [("sagemaker", VARIABLES[0]), ("vertex", VARIABLES[1])])
def test_port_is_the_platforms_before_variables_and_file_and_options_win(
    cloud: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DAT_PORT", "8000")  # as the image has them
    monkeypatch.setenv("DAT_HOST", "127.0.0.1")
    assert listening(load_settings()) == ("127.0.0.1", 8000)
    assert listening(load_settings({"cloud": cloud})) == ("0.0.0.0", 8080)
    monkeypatch.setenv(variable, "8501")
    monkeypatch.setenv("DAT_CLOUD", cloud)
    assert listening(load_settings()) == ("0.0.0.0", 8501)
    assert listening(load_settings({"port": "9000"})) == ("0.0.0.0", 9000)
    monkeypatch.delenv("DAT_CLOUD")
    file = tmp_path / "settings.toml"
    file.write_text(f'cloud = "{cloud}"\nport = 7000\n', encoding="utf-8")
    assert listening(load_settings({"settings": str(file)})) == ("0.0.0.0", 8501)
    for port in ("0", "65536", "http", "8080 ", "9" * 5000):
        monkeypatch.setenv(variable, port)
        with pytest.raises(SettingsError, match=f"{variable}: a TCP port is wanted"):
            load_settings({"cloud": cloud})


def test_without_a_platform_its_variables_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "nonsense")
    assert listening(load_settings()) == ("127.0.0.1", 8000)
    assert platform_values(None, {}, own_places=OWN_PLACES) == {}


def test_platform_that_is_not_known_is_named() -> None:
    with pytest.raises(SettingsError, match=r"--cloud: .*'azure'"):
        load_settings({"cloud": "azure"})


ROUTES = {
    "none": ({}, VertexRoutes("/health", "/predict")),
    "Vertex AI's own": (
        {
            "AIP_HEALTH_ROUTE": "/v1/endpoints/12/deployedModels/34",
            "AIP_PREDICT_ROUTE": "/v1/endpoints/12/deployedModels/34:predict",
        },
        VertexRoutes("/v1/endpoints/12/deployedModels/34", "/v1/endpoints/12/deployedModels/34:predict"),
    ),
    "a probe that there is": ({"AIP_HEALTH_ROUTE": "/health/ready"}, VertexRoutes("/health/ready", "/predict")),
}


@pytest.mark.parametrize("given", ROUTES)
def test_vertex_routes(given: str) -> None:
    environment, routes = ROUTES[given]
    assert vertex_routes(environment) == routes


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AIP_PREDICT_ROUTE": "predict"}, "AIP_PREDICT_ROUTE: a path such as /predict is wanted"),
        ({"AIP_PREDICT_ROUTE": "/"}, "AIP_PREDICT_ROUTE: a path"),
        ({"AIP_PREDICT_ROUTE": "/{model}"}, "AIP_PREDICT_ROUTE: a path"),
        ({"AIP_PREDICT_ROUTE": "/v1/classify"}, "AIP_PREDICT_ROUTE: the service answers otherwise"),
        ({"AIP_PREDICT_ROUTE": "/health/ready"}, "AIP_PREDICT_ROUTE: /health/ready is a probe's"),
        ({"AIP_PREDICT_ROUTE": "/a", "AIP_HEALTH_ROUTE": "/a"}, "AIP_PREDICT_ROUTE: /a is a probe's"),
        ({"AIP_HEALTH_ROUTE": "/metrics"}, "AIP_HEALTH_ROUTE: the service answers otherwise"),
    ],
)
def test_vertex_routes_that_cannot_be_are_said_at_the_start(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        platform_values("vertex", environment, own_places=OWN_PLACES)
    assert message in str(raised.value)
