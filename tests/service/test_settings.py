from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.remote.address import RemoteAddress
from service.settings import Settings, add_options, load_settings, markdown_table, option_of, variable_of


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


def parsed(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return load_settings(vars(parser.parse_args(arguments)))


def test_defaults_are_the_documented_limits() -> None:
    settings = load_settings()
    assert settings.max_body_bytes == 32 * 1024 * 1024
    assert (settings.max_images, settings.max_image_pixels, settings.max_queued_images) == (64, 64_000_000, 1024)
    assert (settings.timeout_ms, settings.receive_timeout_ms, settings.drain_timeout_ms) == (30_000, 10_000, 30_000)
    assert settings.exif_orientation is False


def test_option_wins_over_variable_and_variable_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_PORT", "9000")
    monkeypatch.setenv("DAT_TOP_K", "3")
    settings = parsed("--port", "9001")
    assert (settings.port, settings.top_k, settings.max_images) == (9001, 3, 64)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_field_is_an_option_and_a_variable_and_is_described(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    field = Settings.model_fields[name]
    (tmp_path / "empty.toml").touch()
    given = {
        "repository": "elsewhere", "settings": str(tmp_path / "empty.toml"), "model": "m:1,all", "model_version": "2",
        "version_policy": "latest:2", "device": "cpu", "host": "::1", "workers": "3",
        "devices": "cpu,cuda:1", "provider_options": "use_tf32=1,device_id=2", "batch_buckets": "1,3",
        "cors_origins": "https://example.org,*", "root_path": "/vision", "forwarded_allow_ips": "10.0.0.0/8,fd00::1",
        "tls_certificate": "c.pem", "tls_key": "k.pem",
        "tls_key_password": "p", "tls_ca_certificates": "ca.pem",
        "log_level": "error", "log_format": "json", "resize": "fast", "cloud": "vertex", "api_keys": f"a:{'0' * 64}",
        "sample_requests": "sample", "sample_rate": "0.5", "sample_max_bytes": "2000000",
    }.get(name, str(not field.default) if field.annotation is bool else "77")  # fmt: skip
    if name.startswith("tls_") and name != "tls_certificate":
        monkeypatch.setenv("DAT_TLS_CERTIFICATE", "c.pem")
    if name in ("sample_images", "sample_names"):
        monkeypatch.setenv("DAT_SAMPLE_REQUESTS", "sample")
    if name == "watch_repository":
        monkeypatch.setenv("DAT_MODEL_CONTROL", "true")
    option: tuple[str, ...] = (option_of(name), given)
    if field.annotation is bool:
        option = (option_of(name).replace("--", "--no-") if field.default else option_of(name),)
    by_option = getattr(parsed(*option), name)
    monkeypatch.setenv(variable_of(name), given)
    assert getattr(load_settings(), name) == by_option
    assert by_option != field.default
    assert field.description
    assert f"| `{option_of(name)}` | `{variable_of(name)}` |" in markdown_table()


@pytest.mark.parametrize("name", ["threads", "decode_threads"])
def test_a_part_of_a_processor_is_a_thread_more(name: str) -> None:
    for given, threads in (("1.5", 2), ("0.1", 1), ("3", 3), ("0", 0), (2.5, 3), (4, 4)):
        assert getattr(load_settings({name: given}, environment={}), name) == threads
    for given in ("-0.5", "nan", "inf", "many", "0x2", "1,5"):
        with pytest.raises(SettingsError, match=option_of(name)):
            load_settings({name: given}, environment={})


@pytest.mark.parametrize("given", ["use_tf32", "=1", "use_tf32=1,", "use_tf32:1"])
def test_provider_options_without_a_name_or_value_are_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="--provider-options: options are written name=value"):
        parsed("--provider-options", given)


@pytest.mark.parametrize("given", ["gpu", "cuda:", "auto:1", "cpu:1", "cuda:00"])
def test_unknown_devices_are_refused(given: str) -> None:
    with pytest.raises(SettingsError, match=r"--device: .* is not a device"):
        parsed("--device", given)


def test_unknown_variables_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_DEVIEC", "cpu")
    monkeypatch.setenv("dat_ports", "1")
    with pytest.raises(SettingsError, match="unknown variables DAT_DEVIEC, dat_ports"):
        load_settings()


def test_bad_values_are_all_named_by_where_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_MAX_IMAGES", "many")
    with pytest.raises(SettingsError) as caught:
        parsed("--port", "70000")
    assert "--port" in str(caught.value)
    assert "'70000'" in str(caught.value)
    assert "DAT_MAX_IMAGES" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("devices", "cpu,gpu:0", "'gpu:0' is not a device"),
        ("batch_buckets", "1,4,2", "ascend"),
        ("batch_buckets", "0,1", "greater than 0"),
        ("batch_buckets", "1,,2", "valid integer"),
        ("max_delay_ms", "nan", "finite"),
        ("timeout_ms", "0", "greater than 0"),
        ("timeout_ms", "-5", "greater than 0"),
        ("device", "tpu", "cpu"),
        ("exif_orientation", "maybe", "boolean"),
        ("cors_origins", "example.org", "'example.org' is not an origin"),
        ("cors_origins", "https://example.org/", "is not an origin"),
        *(
            ("root_path", path, "a path such as /vision")
            for path in ("vision", "//a", "/a//b", "/a b", "/a'b", "/a/..")
        ),
        ("forwarded_allow_ips", "proxy.example.org", "an address, a network, or \\* alone"),
        ("forwarded_allow_ips", "10.0.0.1/8", "has host bits set"),
        ("forwarded_allow_ips", "127.0.0.1,*", "an address, a network, or \\* alone"),
        ("forwarded_allow_ips", "127.0.0.1,", "an address, a network, or \\* alone"),
        ("tls_key", "key.pem", "--tls-key is given without --tls-certificate"),
        ("model", "a,b,a", "a is named more than once"),
        ("model", "a:1,a", "a is named with a version and without"),
        ("model", "a:0", "'a:0' is not a model, which is NAME, NAME:VERSION or all"),
        ("model", "a,", "'' is not a model"),
        ("model", "../a", "'../a' is not a model"),
        ("model", "all,a", "all stands for all others, and comes last"),
        ("version_policy", "all", "latest, or latest:N"),
        ("version_policy", "latest:0", "latest, or latest:N"),
        ("sample_rate", "0", "greater than 0"),
        ("sample_rate", "1.01", "less than or equal to 1"),
        ("sample_max_bytes", "1000", "greater than or equal to 1048576"),
        ("sample_images", "true", "--sample-images is given without --sample-requests"),
        ("class_metrics", "-1", "greater than or equal to 0"),
        ("watch_repository", "true", "--watch-repository is given without --model-control"),
    ],
)
def test_value_outside_its_domain_is_refused_with_the_reason(name: str, value: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        load_settings({name: value})
    assert option_of(name) in str(caught.value)


def test_request_that_could_never_be_admitted_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="never be admitted"):
        load_settings({"max_images": "10", "max_queued_images": "5"})
    with pytest.raises(SettingsError, match="shared by 17 workers: such a request could never be admitted"):
        load_settings({"workers": "17"})


@pytest.mark.parametrize(
    ("given", "path"), [("/vision/", "/vision"), ("/", ""), ("", ""), ("/a/b-c.d_e~1", "/a/b-c.d_e~1")]
)
def test_root_path_does_not_end_with_a_slash(given: str, path: str) -> None:
    assert parsed("--root-path", given).root_path == path


@pytest.mark.parametrize(
    ("given", "proxies"),
    [("", ()), ("*", ("*",)), ("10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")), ("127.0.0.1", ("127.0.0.1",))],
)
def test_trusted_proxies_are_addresses_networks_all_or_none(given: str, proxies: tuple[str, ...]) -> None:
    assert parsed("--forwarded-allow-ips", given).forwarded_allow_ips == proxies


def test_api_keys_show_by_their_names_alone() -> None:
    digest = "ab" * 32
    settings = load_settings({"api_keys": f"first:{digest}, second:{digest}"})
    assert [key.name for key in settings.api_keys] == ["first", "second"]
    assert digest not in repr(settings)
    assert settings.model_dump(mode="json")["api_keys"] == ["first", "second"]


def test_buckets_follow_the_device_unless_given() -> None:
    assert load_settings().buckets_for("cpu") == (1, 2, 4, 8)
    assert load_settings().buckets_for("cuda") == (1, 2, 4, 8, 16, 32, 64)
    assert load_settings({"batch_buckets": "1,16"}).buckets_for("cuda") == (1, 16)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_settings_know_devices_without_the_runtime() -> None:
    program = "import sys, service.settings; assert 'onnxruntime' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_options_of_what_is_no_field_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="no settings: max_pixels"):
        add_options(argparse.ArgumentParser(), only=("top_k", "max_pixels"))


class TestRepositoriesElsewhere:
    ADDRESS = "s3://models/dat"

    def test_an_address_is_one_and_a_path_is_a_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert load_settings({"repository": self.ADDRESS}).repository == RemoteAddress(self.ADDRESS)
        assert load_settings({"repository": "s3:/models"}).repository == Path("s3:/models")
        monkeypatch.setenv("DAT_REPOSITORY", self.ADDRESS)
        settings = load_settings({"repository_cache": str(tmp_path)})
        assert settings.repository == settings.repository_anywhere == RemoteAddress(self.ADDRESS)
        assert settings.model_dump(mode="json")["repository"] == self.ADDRESS
        assert settings.local_repository.is_relative_to(tmp_path)
        assert settings.of_model("a").with_options({"top_k": 2}).repository == settings.repository

    def test_a_file_names_an_address_and_a_place_for_copies_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "settings.toml").write_text(f'repository = "{self.ADDRESS}"\nrepository_cache = "copies"\n')
        settings = load_settings({"settings": str(tmp_path / "settings.toml")})
        assert str(settings.repository) == self.ADDRESS
        assert settings.kept_repository.parent == tmp_path / "copies"

    def test_copies_are_in_the_users_cache_if_nobody_says_where(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = load_settings({"repository": self.ADDRESS})
        monkeypatch.setenv("XDG_CACHE_HOME", "/of/xdg")
        assert settings.kept_repository.parent == Path("/of/xdg/dat-serve")
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.setenv("HOME", "/home/me")
        assert settings.kept_repository.parent == Path("/home/me/.cache/dat-serve")
        monkeypatch.delenv("HOME")
        with pytest.raises(SettingsError, match="name a --repository-cache: this user has no directory of its own"):
            _ = settings.kept_repository

    @pytest.mark.parametrize("address", ["https://me:secret@host/", "https://host/?sig=secret", "ftp://secret/"])
    def test_a_secret_in_an_address_is_not_repeated(self, address: str) -> None:
        with pytest.raises(SettingsError, match="--repository: ") as raised:
            load_settings({"repository": address})
        assert "secret" not in str(raised.value)

    def test_a_version_may_be_pinned(self) -> None:
        digest = "0123456789abcdef" * 4
        settings = load_settings({"model": f"a:2@sha256:{digest},a:3,b"})
        assert settings.model_names == ("a", "b")
        assert settings.named_versions("a") == (2, 3)
        assert [settings.digest_of("a", 2), settings.digest_of("a", 3), settings.digest_of("b", 1)] == [
            digest,
            None,
            None,
        ]

    @pytest.mark.parametrize(
        "model", ["a@sha256:{}", "a:1@sha256:0", "a:1@md5:{}", "a:1@{}", "all@sha256:{}", "a:1,a:1@sha256:{}"]
    )
    def test_what_pins_nothing_is_refused(self, model: str) -> None:
        with pytest.raises(SettingsError, match="--model"):
            load_settings({"model": model.format("0" * 64)})
