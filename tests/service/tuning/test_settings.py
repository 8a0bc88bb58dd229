"""What is given and chosen, as files of settings that the server reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from service.errors import SettingsError, StartupError
from service.settings import Settings, load_settings
from service.tuning import outcome
from service.tuning.choice import Choice
from service.tuning.given import MEASURED, Given, without_settings
from tests.service import tiny_model

CHOICE = Choice({"workers": 2}, {"tiny": {"batch_buckets": (1, 4), "instances": 2}})


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a repository of two models, no variables, and the folder as the current one."""
    for name in os.environ.keys() - without_settings(os.environ).keys():
        monkeypatch.delenv(name)
    tiny_model.write(tmp_path / "models")
    tiny_model.write(tmp_path / "models", name="other")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def given(**options: object) -> Given:
    return Given.of(load_settings({name: str(value) for name, value in options.items()}, environment={}))


def read(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "read" / "settings.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return load_settings({"settings": path}, environment={})


def test_a_file_for_the_user_holds_what_was_given_and_chosen(tmp_path: Path, repository: Path) -> None:
    of = given(repository="models", model="tiny,other", provider_options="a=1,b=x y", max_delay_ms=1.5, explain="false")
    text = of.for_user(CHOICE, comment=["found", "at night"])
    assert text.startswith("# found\n# at night\n\n")
    settings = read(text, tmp_path)
    assert settings.repository == repository
    assert settings.model == ("tiny", "other")
    assert (settings.provider_options, settings.max_delay_ms, settings.explain) == ({"a": "1", "b": "x y"}, 1.5, False)
    assert (settings.workers, settings.of_model("tiny").batch_buckets) == (2, (1, 4))
    assert (settings.of_model("tiny").instances, settings.of_model("other").instances) == (2, 1)


def test_every_setting_that_can_be_given_is_written_as_it_is_read(tmp_path: Path) -> None:
    settings = Settings()
    values = {name: getattr(settings, name) for name in MEASURED if getattr(settings, name) is not None}
    whole = Given.of(Settings(**values))
    assert whole.values.keys() == values.keys()
    again = read(whole.for_user(Choice(), comment=[]), tmp_path)
    assert {name: getattr(again, name) for name in values} == values | {"repository": settings.repository.resolve()}


def test_a_settings_file_that_was_given_is_carried_over(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    lines = (
        'repository = "../models"', 'model = "all"', "port = 9000", 'tls_certificate = "cert.pem"',
        'api_keys = "app:' + 64 * "0" + '"', 'devices = ["cpu", "cpu"]',
        "[models.tiny]", "threads = 1", "[models.other]", "top_k = 2",
    )  # fmt: skip
    (folder / "given.toml").write_text("\n".join(lines))
    of = given(settings=folder / "given.toml", device="cpu")
    settings = read(of.for_user(CHOICE, comment=[]), tmp_path)
    assert (settings.port, settings.tls_certificate, settings.api_keys[0].name) == (9000, folder / "cert.pem", "app")
    assert (settings.device, settings.devices) == ("cpu", ())
    tiny = settings.of_model("tiny")
    assert (tiny.threads, tiny.instances, settings.of_model("other").top_k) == (1, 2, 2)
    assert {"threads", "device", "model"} <= of.fixed("tiny")
    assert "threads" not in of.fixed("other")


def test_what_a_models_own_file_says_is_given(repository: Path) -> None:
    (repository / "tiny" / "settings.toml").write_text("instances = 2\n")
    of = given(repository="models", model="all")
    assert "instances" in of.fixed("tiny")
    assert "instances" not in of.fixed("other")


def test_variables_are_given_and_told_to_servers_by_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAT_THREADS", "3")
    monkeypatch.setenv("DAT_PORT", "9000")
    monkeypatch.setenv("DAT_API_KEYS", "app:" + 64 * "0")
    of = given(repository="models", model="tiny")
    assert "threads" in of.fixed()
    text = of.for_server(Choice(), ["tiny"])
    assert without_settings({"DAT_THREADS": "3", "dat_port": "1", "PATH": "x"}) == {"PATH": "x"}
    for name in ("DAT_THREADS", "DAT_PORT", "DAT_API_KEYS"):
        monkeypatch.delenv(name)
    settings = read(text, tmp_path)
    assert (settings.threads, settings.port, settings.api_keys) == (3, Settings().port, ())


def test_a_server_that_is_measured_has_the_models_that_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "given.toml").write_text(
        'repository = "models"\nmodel = ["tiny:3", "other"]\n[models.tiny]\ntop_k = 2\n[models.other]\ntop_k = 3\n'
    )
    of = given(settings="given.toml")
    alone = read(of.for_server(CHOICE, ["tiny"]), tmp_path)
    assert (alone.model, alone.models_with_tables) == (("tiny:3",), ("tiny",))
    both = read(of.for_server(CHOICE, ["tiny", "other"]), tmp_path)
    assert (both.model, both.models_with_tables) == (("tiny:3", "other"), ("tiny", "other"))


def test_the_file_is_put_in_its_place_whole(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    outcome.write(path, given(repository="models", model="tiny"), CHOICE, comment=["x"], force=False)
    assert load_settings({"settings": path}).of_model("tiny").instances == 2
    with pytest.raises(SettingsError, match="there already"):
        outcome.write(path, given(), Choice(), comment=[], force=False)
    outcome.write(path, given(), Choice(), comment=["again"], force=True)
    assert path.read_text() == "# again\n"
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["tuned.toml"]


def test_a_file_that_would_be_read_otherwise_is_not_put_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = given(repository="models", model="tiny")
    monkeypatch.setenv("DAT_WORKERS", "3")
    with pytest.raises(StartupError, match="workers would be read as 3 where 2"):
        outcome.write(tmp_path / "tuned.toml", of, CHOICE, comment=[], force=False)
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == []


def test_a_file_made_from_a_secret_one_is_as_secret(tmp_path: Path) -> None:
    secret = tmp_path / "given.toml"
    secret.write_text('repository = "models"\nmodel = "tiny"\n')
    secret.chmod(0o600)
    outcome.write(tmp_path / "tuned.toml", given(settings=secret), Choice(), comment=[], force=False)
    assert stat.S_IMODE((tmp_path / "tuned.toml").stat().st_mode) == 0o600


@pytest.mark.parametrize(("path", "reason"), [("no/tuned.toml", "no folder no"), ("models", "is a folder")])
def test_a_place_that_cannot_be_written_is_named(path: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        outcome.check_place(Path(path), force=True)
