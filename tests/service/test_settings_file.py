"""Settings from a file, and those of one model: what wins over what, and how mistakes are named."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from service.__main__ import main
from service.errors import SettingsError
from service.model.manifest import NAME_PATTERN
from service.settings import OF_ONE_MODEL, Settings, load_settings, variable_of
from service.settings_fields import Fields

DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


def settings_of(tmp_path: Path, toml: str, **options: str) -> Settings:
    file = tmp_path / "settings.toml"
    file.write_text(toml, encoding="utf-8")
    return load_settings({"repository": str(tmp_path / "models"), **options, "settings": str(file)})


def write_own(tmp_path: Path, name: str, toml: str) -> Path:
    path = tmp_path / "models" / name / "settings.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(toml, encoding="utf-8")
    return path


def test_option_wins_over_variable_and_variable_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_MAX_IMAGES", "9")
    monkeypatch.setenv("DAT_TOP_K", "2")
    monkeypatch.setenv("DAT_TIMEOUT_MS", "")
    settings = settings_of(tmp_path, "max_images = 8\ntop_k = 1\nport = 9000\ntimeout_ms = 7", top_k="3")
    assert (settings.top_k, settings.max_images, settings.port, settings.timeout_ms) == (3, 9, 9000, 7)


def test_file_may_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.toml").write_text("port = 9000", encoding="utf-8")
    monkeypatch.setenv("DAT_SETTINGS", str(tmp_path / "s.toml"))
    assert load_settings().port == 9000


def test_values_are_those_of_options_or_tomls_own(tmp_path: Path) -> None:
    own = settings_of(
        tmp_path,
        f"""
        model = ["a", "b:2"]
        batch_buckets = [1, 4]
        devices = ["cpu", "cuda:1"]
        v2_outputs = ["all"]
        forwarded_allow_ips = []
        api_keys = ["x:{DIGEST}", "y:{DIGEST}:role=admin"]
        tracing = true
        max_delay_ms = 1.5
        provider_options = {{ use_tf32 = "1" }}
        """,
    )
    text = settings_of(
        tmp_path,
        f"""
        model = "a,b:2"
        batch_buckets = "1,4"
        devices = "cpu,cuda:1"
        v2_outputs = "all"
        forwarded_allow_ips = ""
        api_keys = "x:{DIGEST},y:{DIGEST}:role=admin"
        tracing = "true"
        max_delay_ms = "1.5"
        provider_options = "use_tf32=1"
        """,
    )
    assert own == text
    assert own.model == ("a", "b:2")
    assert own.v2_outputs == ()
    assert [key.role for key in own.api_keys] == ["user", "admin"]


def test_paths_in_a_file_begin_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('repository = "models"\ntls_certificate = "/etc/c.pem"', encoding="utf-8")
    settings = load_settings({"settings": str(tmp_path / "s.toml")})
    assert (settings.repository, settings.tls_certificate) == (tmp_path / "models", Path("/etc/c.pem"))


def test_device_that_is_said_wins_over_devices_of_the_file(tmp_path: Path) -> None:
    assert settings_of(tmp_path, 'devices = ["cpu", "cuda"]', device="cpu").devices == ()
    assert settings_of(tmp_path, 'device = "cuda"', devices="cpu,cpu").devices == ("cpu", "cpu")


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("max_image = 8", "settings.toml: max_image: there is no such setting"),
        ('settings = "x"', "settings.toml: settings: there is no such setting in a file"),
        ("max_images = 0\nport = 70000", r"settings.toml: port: .*70000\).*; .*settings.toml: max_images: .*0\)"),
        ("port = true", "settings.toml: port: it is neither true nor false"),
        ("model = 5", "settings.toml: model: .*tuple"),
        ("port = =", "settings.toml is not TOML: .*line 1"),
        ("models = 3", "settings.toml: models: tables"),
        ("[models]\na = 3", r"settings.toml: models\.a: a table"),
        ("[models.a]\nport = 3", r"settings.toml: models\.a\.port: this cannot be set for one model; what can is"),
        ("[models.a]\nprot = 3", r"settings.toml: models\.a\.prot: there is no such setting"),
        ("[models.a]\ntop_k = 0", r"settings.toml: models\.a\.top_k: .*greater than 0 \(given 0\)"),
        ("[models.a]\nbatch_buckets = [4, 1]", r"models\.a\.batch_buckets: the sizes must ascend"),
        ("[models.a]\nexplain = 3", r"models\.a\.explain: .*boolean"),
    ],
)
def test_mistakes_are_named_by_file_and_key(tmp_path: Path, toml: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        settings_of(tmp_path, toml)


def test_a_bad_value_is_a_mistake_though_an_option_wins_over_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="port"):
        settings_of(tmp_path, "port = 70000", port="8000")


def test_what_is_whole_with_a_variable_alone_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_TLS_CERTIFICATE", "c.pem")
    assert settings_of(tmp_path, 'tls_key = "k.pem"').tls_key == tmp_path / "k.pem"


@pytest.mark.parametrize("toml", ['api_keys = ["top-secret"]', 'api_keys = "top-secret"', "api_keys = [5]"])
def test_secrets_of_a_file_are_not_repeated(tmp_path: Path, toml: str) -> None:
    with pytest.raises(SettingsError, match="api_keys") as caught:
        settings_of(tmp_path, toml)
    assert "top-secret" not in str(caught.value)


def test_password_of_a_file_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.toml").write_text('tls_certificate = "c"\ntls_key_password = "top-secret"', encoding="utf-8")
    assert main(["settings", "--settings", str(tmp_path / "s.toml")]) == 0
    assert "top-secret" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"s\.toml (cannot be read|is not UTF-8)"):
        load_settings({"settings": str(tmp_path / "s.toml")})


def test_what_is_said_of_a_model_goes_before_what_is_said_of_all(tmp_path: Path) -> None:
    write_own(tmp_path, "a", "top_k = 2\nmax_delay_ms = 2")
    settings = settings_of(tmp_path, "max_delay_ms = 1\n[models.a]\ntop_k = 3", top_k="4")
    assert (settings.top_k, settings.max_delay_ms) == (4, 1)
    of_a, of_b = settings.of_model("a"), settings.of_model("b")
    assert (of_a.top_k, of_a.max_delay_ms) == (3, 2)
    assert (of_b.top_k, of_b.max_delay_ms) == (4, 1)
    assert of_a.of_model("a") == of_a


def test_a_models_own_file_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    settings = load_settings({"repository": str(tmp_path / "models")})
    assert settings.of_model("a").batch_buckets == ()
    write_own(tmp_path, "a", "batch_buckets = [1, 2]")
    assert settings.of_model("a").batch_buckets == (1, 2)
    path = write_own(tmp_path, "a", "port = 1")
    with pytest.raises(SettingsError, match=rf"{path}: port: this cannot be set for one model"):
        settings.of_model("a")


@pytest.mark.parametrize("name", ["..", "../models/a", "a/../a"])
def test_what_is_no_models_name_leads_to_no_file(tmp_path: Path, name: str) -> None:
    write_own(tmp_path, "a", "top_k = 1")
    (tmp_path / "settings.toml").write_text("top_k = 1", encoding="utf-8")
    settings = load_settings({"repository": str(tmp_path / "models")})
    assert settings.of_model(name).top_k == settings.top_k


def test_one_device_of_a_model_takes_the_place_of_several(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, 'devices = ["cuda:0", "cuda:1"]\n[models.a]\ndevice = "cpu"')
    assert (settings.of_model("a").devices, settings.of_model("a").device) == ((), "cpu")
    assert settings.of_model("b").devices == ("cuda:0", "cuda:1")


def test_options_of_a_command_that_asks_one_model_speak_of_that(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, '[models.a]\ntop_k = 3\ndevices = ["cpu", "cpu"]').of_model("a")
    assert settings.with_options({"port": "1"}).top_k == 3
    laid_over = settings.with_options({"top_k": "5", "device": "cpu"})
    assert (laid_over.top_k, laid_over.devices) == (5, ())
    assert laid_over.of_model("a") == laid_over


def test_settings_keep_their_tables_on_the_way_to_other_processes(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "[models.a]\ntop_k = 3")
    for other in (pickle.loads(pickle.dumps(settings)), settings.model_copy(update={"port": 1})):
        assert other.of_model("a").top_k == 3


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("", False),
        ("instances = 2", True),
        ("[models.a]\ninstances = 2", True),
        ('[models.a]\ndevices = ["cpu"]', True),
        ("[models.a]\ninstances = 1", False),
    ],
)
def test_engines_are_processes_where_a_model_wants_several(tmp_path: Path, toml: str, expected: bool) -> None:
    assert settings_of(tmp_path, toml).has_processes is expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, ()),
        ({"model": "a"}, ()),
        ({"model": "a:3,b,a:1"}, (1, 3)),
        ({"model": "a", "model_version": "2"}, (2,)),
        ({"model_version": "2"}, (2,)),
        ({"model": "b", "model_version": "2"}, ()),
    ],
)
def test_versions_may_be_named(options: dict[str, str], named: tuple[int, ...]) -> None:
    assert load_settings(options).named_versions("a") == named


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": "a,b"}, "--model names several"),
        ({"model": "all"}, "--model names several"),
        ({"model": "a:2"}, "--model has its version already: a:2"),
        ({"model_control": "true"}, "names none, where others may be loaded"),
    ],
)
def test_one_version_is_of_one_model(options: dict[str, str], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        load_settings({**options, "model_version": "1"})


def test_models_are_named_by_options_that_repeat_or_by_commas() -> None:
    settings = load_settings({"model": ["b:2", "a,b:3", "all"]})
    assert (settings.model_names, settings.serves_all) == (("b", "a"), True)
    assert settings.latest_versions == 1
    assert load_settings({"version_policy": "latest:4"}).latest_versions == 4


@pytest.mark.parametrize("name", ["a", "dat-p.tiny_2", "A" * 128, "A" * 129, "-a", ".a", "a/b", "a b", ""])
def test_names_are_those_of_manifests(name: str) -> None:
    is_one = re.match(NAME_PATTERN, name) is not None
    if is_one:
        assert Fields(model=(name,)).model == (name,)
    else:
        with pytest.raises(ValueError, match="not a model"):
            Fields(model=(name,))


def test_what_differs_for_a_model_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.toml"
    file.write_text('top_k = 2\n[models.a]\ndevice = "cpu"\ntop_k = 2', encoding="utf-8")
    write_own(tmp_path, "b", "top_k = 1")
    manifest = tmp_path / "models" / "b" / "1" / "manifest.json"
    manifest.parent.mkdir()
    manifest.touch()
    assert main(["settings", "--settings", str(file), "--repository", str(tmp_path / "models")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("models.")] == ["models.a.device = cpu", "models.b.top_k = 1"]
    assert "top_k = 2" in lines


def test_fields_of_one_model_are_fields() -> None:
    assert set(OF_ONE_MODEL) <= Settings.model_fields.keys()
