"""A service below a path of a proxy, whether or not the proxy takes the path off before it passes a request on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from starlette.routing import Mount, Route

from service.errors import SettingsError
from service.http.problems import all_kinds
from service.http.root_path import path_below_root
from service.model.directory import ModelDirectory
from service.settings import load_settings
from service.settings_fields import OWN_PLACES
from tests.service.conftest import GatedSession, Served, make_parts, serving
from tests.service.pictures import photo
from tests.service.tiny_model import NAME

ROOT_PATH = "/team/vision"
FILE = {"Content-Type": "application/octet-stream"}

with_and_without = pytest.mark.parametrize("prefix", [ROOT_PATH, ""], ids=["kept", "taken off"])


@pytest.fixture
async def below(model: ModelDirectory) -> AsyncIterator[Served]:
    async with serving(model, root_path=ROOT_PATH) as running:
        yield running


@with_and_without
@pytest.mark.parametrize(
    "path",
    ["/", "/page/main.js", "/docs", "/docs/assets/swagger-ui.css", "/health/ready", "/metrics", "/v1/models", "/v2"],
)
async def test_path_is_answered(below: Served, prefix: str, path: str) -> None:
    assert (await below.http.get(prefix + path)).status_code == 200


@with_and_without
@pytest.mark.parametrize(
    ("path", "route"), [("/v1/classify", None), (f"/v2/models/{NAME}/infer", "/v2/models/{model}/infer")]
)
async def test_inference_goes_by_its_own_route(below: Served, prefix: str, path: str, route: str | None) -> None:
    headers = FILE | {"Inference-Header-Content-Length": "0", "X-Image-Datatype": "BYTES"} if route else FILE
    response = await below.http.post(prefix + path, content=photo("JPEG"), headers=headers)
    assert response.status_code == 200, response.text
    assert below.sample("dat_requests_total", route=route or path, status="200", code="ok") == 1


@with_and_without
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classify/", "/docs/assets/v2/none.css", "/nowhere"])
async def test_type_of_a_problem_leads_below_the_path(below: Served, prefix: str, path: str) -> None:
    problem = (await below.http.get(prefix + path)).json()
    assert problem["type"] == f"{ROOT_PATH}/problems/{problem['code']}"
    assert (await below.http.get(problem["type"])).text.startswith(all_kinds()[problem["code"]].title)


@with_and_without
async def test_errors_of_the_inference_protocol_stay_its_own(below: Served, prefix: str) -> None:
    for path in ("/v2/nowhere", f"/v2/models/{NAME}/infer", "/v2/models/other"):
        assert (await below.http.get(prefix + path)).json().keys() == {"error"}


@with_and_without
async def test_documentation_names_addresses_below_the_path(below: Served, prefix: str) -> None:
    page = (await below.http.get(f"{prefix}/docs")).text
    addresses = re.findall(r"""(?:src|href)="(/[^"]*)"|url: '(/[^']*)'""", page)
    assert len(addresses) == 4
    for address in map("".join, addresses):
        assert address.startswith(f"{ROOT_PATH}/")
        assert (await below.http.get(address)).status_code == 200
    document = (await below.http.get(f"{prefix}/openapi.json")).json()
    assert [server["url"] for server in document["servers"]] == [ROOT_PATH]


async def test_prefix_itself_is_not_the_page_whose_addresses_are_relative(below: Served) -> None:
    assert (await below.http.get(ROOT_PATH)).status_code == 404
    assert (await below.http.get("/team/visionary/v1/models")).status_code == 404


def test_no_prefix_can_be_a_path_of_the_services_own(model: ModelDirectory) -> None:
    routes = make_parts(model, lambda _: GatedSession()).app.routes
    paths = [route.path for route in routes if isinstance(route, Route | Mount)]
    assert {path.split("/")[1] for path in paths} - {""} == OWN_PLACES
    for place in OWN_PLACES:
        with pytest.raises(SettingsError, match="--root-path: the service's own paths begin so"):
            load_settings({"root_path": f"/{place}/vision"})
    assert load_settings({"root_path": "/vision/v1"}).root_path == "/vision/v1"


@pytest.mark.parametrize(
    ("root_path", "path", "below"),
    [
        ("", "/v1/classify", "/v1/classify"),
        ("/vision", "/vision/v1/classify", "/v1/classify"),
        ("/vision", "/v1/classify", "/v1/classify"),
        ("/vision", "/vision", ""),
        ("/vision", "/visionary", "/visionary"),
        ("/vision", "/vision/vision", "/vision"),
    ],
)
def test_path_below_the_root_is_told_with_the_root_and_without(root_path: str, path: str, below: str) -> None:
    assert path_below_root({"type": "http", "root_path": root_path, "path": path}) == below
