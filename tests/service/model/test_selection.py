"""Which versions of which models are served, of a repository with several."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import IncompleteModel, RepositoryError, SettingsError
from service.model.directory import check_whole, open_model
from service.model.selection import only_model, select_models, settings_of_only_model, wanted_versions
from service.settings import Settings, load_settings
from tests.service import tiny_model


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    for name, version in (("b", 1), ("b", 2), ("b", 10), ("a", 3), ("c", 1)):
        tiny_model.write(root, name=name, version=version, explain=False)
    return root


def settings_of(repository: Path, **options: object) -> Settings:
    return load_settings({"repository": str(repository), **options})


def selected(settings: Settings) -> list[tuple[str, int]]:
    return [(model.manifest.name, model.manifest.version) for model, _ in select_models(settings)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": "b"}, [("b", 10)]),
        ({"model": "b", "model_version": 2}, [("b", 2)]),
        ({"model": "c,b:2,a,b:1"}, [("c", 1), ("b", 1), ("b", 2), ("a", 3)]),
        ({"model": "all"}, [("a", 3), ("b", 10), ("c", 1)]),
        ({"model": "c,all"}, [("c", 1), ("a", 3), ("b", 10)]),
        ({"model": "all", "version_policy": "latest:2"}, [("a", 3), ("b", 2), ("b", 10), ("c", 1)]),
        ({"model": "b:1,all", "version_policy": "latest:9"}, [("b", 1), ("a", 3), ("c", 1)]),
    ],
)
def test_models_come_in_the_order_of_the_settings_with_their_versions(
    repository: Path, options: dict[str, object], expected: list[tuple[str, int]]
) -> None:
    assert selected(settings_of(repository, **options)) == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "several models, choose one of: a, b, c; or --model all"),
        ({"model": "d"}, "holds no model 'd'; it holds: a, b, c"),
        ({"model": "a,b:3"}, "holds no version 3 of b; it holds: 1, 2, 10"),
    ],
)
def test_what_is_not_there_is_an_error_that_says_what_is(
    repository: Path, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(RepositoryError, match=reason):
        select_models(settings_of(repository, **options))


def test_the_only_model_need_not_be_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no model; make one"):
        select_models(settings_of(tmp_path))
    tiny_model.write(tmp_path, name="only", version=4)
    assert selected(settings_of(tmp_path)) == [("only", 4)]


def test_a_broken_version_among_all_is_named(tmp_path: Path) -> None:
    tiny_model.write(tmp_path, name="good")
    labels = tiny_model.write(tmp_path, name="bad") / "labels.tsv"
    labels.write_bytes(labels.read_bytes()[::-1])
    with pytest.raises(RepositoryError, match=rf"{labels} does not match its manifest"):
        select_models(settings_of(tmp_path, model="all"))


def test_each_model_comes_with_its_own_settings(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('model = "all"\n[models.b]\nversion_policy = "latest:3"\ntop_k = 1', encoding="utf-8")
    found = [
        (model.manifest.name, model.manifest.version, of_model.top_k)
        for model, of_model in select_models(settings_of(repository, settings=str(file)))
    ]
    assert found == [("a", 3, 5), ("b", 1, 1), ("b", 2, 1), ("b", 10, 1), ("c", 1, 5)]


def test_a_table_for_a_model_that_is_not_served_is_a_mistake_unless_it_may_come(
    repository: Path, tmp_path: Path
) -> None:
    file = tmp_path / "s.toml"
    file.write_text("[models.d]\ntop_k = 1", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"s\.toml: models\.d: this model is not served; served: a"):
        select_models(settings_of(repository, model="a", settings=str(file)))
    assert selected(settings_of(repository, model="a", settings=str(file), model_control="true")) == [("a", 3)]


def test_one_model_is_opened_at_its_highest_wanted_version(repository: Path) -> None:
    settings = settings_of(repository, model="b", version_policy="latest:2")
    model, of_model = only_model(settings)
    assert (model.manifest.version, of_model) == (10, settings_of_only_model(settings))
    assert only_model(settings_of(repository, model="b:2"))[0].manifest.version == 2
    with pytest.raises(SettingsError, match=r"one model is wanted here.*'a,b'"):
        only_model(settings_of(repository, model="a,b"))


def test_the_highest_versions_are_wanted_of_those_that_are_there(repository: Path) -> None:
    settings = settings_of(repository, model="b", version_policy="latest:2")
    assert wanted_versions(settings, "b", (1, 2, 10)) == (2, 10)
    assert wanted_versions(settings, "b", (1,)) == (1,)


def incomplete(path: Path, kind: str) -> None:
    model, manifest = path / "model.onnx", path / "manifest.json"
    if kind == "missing":
        model.unlink()
    elif kind == "short":
        model.write_bytes(model.read_bytes()[:-1])
    elif kind == "cut":
        manifest.write_bytes(manifest.read_bytes()[:-10])
    else:
        manifest.unlink()


@pytest.mark.parametrize("kind", ["missing", "short", "cut", "none"])
def test_what_is_not_whole_yet_is_told_from_what_is_broken(tmp_path: Path, kind: str) -> None:
    path = tiny_model.write(tmp_path)
    check_whole(path)
    incomplete(path, kind)
    for check in (check_whole, open_model):
        with pytest.raises(IncompleteModel):
            check(path)


@pytest.mark.parametrize("kind", ["digest", "long", "name"])
def test_what_is_broken_is_not_called_incomplete(tmp_path: Path, kind: str) -> None:
    path = tiny_model.write(tmp_path)
    model = path / "model.onnx"
    if kind == "digest":
        model.write_bytes(model.read_bytes()[::-1])
    elif kind == "long":
        model.write_bytes(model.read_bytes() + b"\0")
    else:
        path = path.rename(path.parent / "77")
    check_whole(path)
    with pytest.raises(RepositoryError) as caught:
        open_model(path)
    assert not isinstance(caught.value, IncompleteModel)
