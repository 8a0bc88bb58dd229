"""Repositories that lie elsewhere: on an S3 server and on web servers of the test's own."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import RemoteFailed, RepositoryError, UnknownModel
from service.model import remote_holdings
from service.model.holdings import holdings_of
from service.model.selection import only_model, select_models
from service.remote import store as store_module
from service.remote.store import RemoteStore
from service.serving.repository import ModelRepository
from service.settings import Settings, load_settings
from tests.certificates import Certificate, make_certificate
from tests.object_store import SECRET, Bucket, ObjectStore, object_store
from tests.service import tiny_model
from tests.web_server import WebServer, web_server


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.fixture
def bucket(s3: ObjectStore) -> Bucket:
    return s3.bucket()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def https(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))
    with web_server(certificate.certificate, certificate.key) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_RETRIES", 0)
    monkeypatch.setattr("service.remote.download._DELAYS_S", (0.0,))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of `a`, and one of `b`."""
    root = tmp_path_factory.mktemp("models")
    tiny_model.write(root, name="a", version=1)
    tiny_model.write(root, name="a", version=2, seed=2)
    tiny_model.write(root, name="b", version=1, explain=False)
    return root


def digest_of(models: Path, name: str, version: int) -> str:
    return hashlib.sha256((models / name / str(version) / "manifest.json").read_bytes()).hexdigest()


def settings_of(url: str, tmp_path: Path, **options: object) -> Settings:
    return load_settings({"repository": url, "repository_cache": str(tmp_path / "cache"), **options})


def opened(settings: Settings) -> list[tuple[str, int]]:
    return [(model.manifest.name, model.manifest.version) for model, _ in select_models(settings)]


def test_what_is_wanted_is_copied_and_nothing_else(bucket: Bucket, models: Path, tmp_path: Path) -> None:
    bucket.add(models)
    bucket.put("a/3/model.onnx", b"of a version that is being written")
    bucket.put("notes/readme.txt", b"of no model")
    model, _ = only_model(settings_of(bucket.url, tmp_path, model="a"))
    assert model.manifest.version == 2
    assert model.model_path.read_bytes() == (models / "a" / "2" / "model.onnx").read_bytes()
    assert model.path.is_relative_to(tmp_path / "cache")
    assert [path.parent.name for path in (tmp_path / "cache").rglob("model.onnx")] == ["2"]


def test_models_are_chosen_as_in_a_directory(bucket: Bucket, models: Path, tmp_path: Path) -> None:
    bucket.add(models)
    assert opened(settings_of(bucket.url, tmp_path, model="b,all", version_policy="latest:2")) == [
        ("b", 1), ("a", 1), ("a", 2),
    ]  # fmt: skip
    with pytest.raises(RepositoryError, match=rf"^{bucket.url} holds several models, choose one of: a, b; or --model"):
        only_model(settings_of(bucket.url, tmp_path))
    with pytest.raises(RepositoryError, match=r"holds no version 7 of a; it holds: 1, 2"):
        only_model(settings_of(bucket.url, tmp_path, model="a:7"))


def test_an_empty_bucket_and_none_are_told_apart(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no model"):
        only_model(settings_of(bucket.url, tmp_path))
    with pytest.raises(RemoteFailed, match=r"s3://no-such-bucket cannot be read: .*404 Not Found \(NoSuchBucket\)"):
        only_model(settings_of("s3://no-such-bucket", tmp_path))


def test_a_models_own_settings_come_with_it_and_go(bucket: Bucket, models: Path, tmp_path: Path) -> None:
    bucket.add(models)
    bucket.put("a/settings.toml", b"top_k = 2\n")
    settings = settings_of(bucket.url, tmp_path, model="a")
    repository = ModelRepository(settings)
    assert repository.at_start()[0].settings.top_k == 2
    bucket.put("a/settings.toml", b"top_k = 3\n")
    assert repository.wanted("a") == (2,)
    assert repository.open("a", 2).settings.top_k == 3
    bucket.remove("a/settings.toml")
    assert repository.open("a", 2).settings.top_k == 5


def test_a_start_with_the_store_gone_serves_what_was_kept(
    bucket: Bucket, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.add(models)
    bucket.put("a/settings.toml", b"top_k = 2\n")
    settings = settings_of(bucket.url, tmp_path, model="a:1")
    assert opened(settings) == [("a", 1)]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    model, of_model = only_model(settings)
    assert (model.manifest.version, of_model.top_k) == (1, 2)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "Connection refused" in vars(warning)["fields"]["reason"]
    assert SECRET not in str(vars(warning))
    with pytest.raises(RepositoryError, match="holds no version 2 of a; it holds: 1"):
        only_model(settings_of(bucket.url, tmp_path, model="a:2"))
    with pytest.raises(RemoteFailed, match="Connection refused"):
        only_model(settings_of(bucket.url, tmp_path / "other", model="a"))
    with pytest.raises(RemoteFailed, match="Connection refused"):  # whoever asks for a load is told
        ModelRepository(settings).wanted("a")


def test_a_withdrawn_version_does_not_come_back_when_the_store_is_gone(
    bucket: Bucket, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.add(models)
    settings = settings_of(bucket.url, tmp_path, model="a", version_policy="latest:2")
    assert opened(settings) == [("a", 1), ("a", 2)]
    bucket.remove("a/2/")
    assert opened(settings) == [("a", 1)]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert opened(settings) == [("a", 1)]


def test_a_version_that_was_replaced_is_copied_beside_the_one_in_use(
    bucket: Bucket, models: Path, tmp_path: Path
) -> None:
    bucket.add(models)
    repository = ModelRepository(settings_of(bucket.url, tmp_path, model="b"))
    (before,) = repository.at_start()
    tiny_model.write(tmp_path / "new", name="b", version=1, seed=9)
    bucket.add(tmp_path / "new")
    after = repository.open("b", 1)
    assert after.model.path != before.model.path
    assert before.model.model_path.read_bytes() == (models / "b" / "1" / "model.onnx").read_bytes()
    old = before.model.path
    del before
    tiny_model.write(tmp_path / "newer", name="b", version=1, seed=10)
    bucket.add(tmp_path / "newer")
    repository.open("b", 1)
    assert not old.exists()  # nobody used it any more
    assert after.model.path.exists()


def test_a_manifest_that_is_pinned_must_be_that_one(bucket: Bucket, models: Path, tmp_path: Path) -> None:
    bucket.add(models)
    digest = digest_of(models, "a", 1)
    pinned = settings_of(bucket.url, tmp_path, model=f"a:1@sha256:{digest}")
    assert opened(pinned) == [("a", 1)]
    tiny_model.write(tmp_path / "new", name="a", version=1, seed=9)
    bucket.add(tmp_path / "new")
    assert opened(pinned) == [("a", 1)]  # it is here
    other = digest_of(tmp_path / "new", "a", 1)
    with pytest.raises(RepositoryError, match=f"manifest.json has sha256 {other}, and {digest} is wanted"):
        opened(settings_of(bucket.url, tmp_path / "other", model=f"a:1@sha256:{digest}"))


def test_a_directory_takes_a_pinned_digest_too(models: Path) -> None:
    digest = digest_of(models, "a", 2)
    assert opened(load_settings({"repository": str(models), "model": f"a:2@sha256:{digest}"})) == [("a", 2)]
    with pytest.raises(RepositoryError, match=f"has sha256 {digest}, and {'0' * 64} is wanted"):
        opened(load_settings({"repository": str(models), "model": f"a:2@sha256:{'0' * 64}"}))


@pytest.mark.parametrize("file", ["model.onnx", "labels.tsv"])
def test_a_file_that_is_not_the_manifests_is_refused(bucket: Bucket, models: Path, tmp_path: Path, file: str) -> None:
    bucket.add(models)
    content = (models / "b" / "1" / file).read_bytes()
    bucket.put(f"b/1/{file}", content[:-1] + b"?")
    settings = settings_of(bucket.url, tmp_path, model="b")
    with pytest.raises(RepositoryError, match=rf"/b/1/{file} has sha256 [0-9a-f]+, expected"):
        only_model(settings)
    bucket.put(f"b/1/{file}", content)
    only_model(settings)


def test_a_manifest_of_another_model_is_refused(bucket: Bucket, models: Path, tmp_path: Path) -> None:
    bucket.put("b/1/manifest.json", (models / "a" / "1" / "manifest.json").read_bytes())
    with pytest.raises(RepositoryError, match="is of a version 1, but lies in b/1"):
        only_model(settings_of(bucket.url, tmp_path))
    bucket.put("b/1/manifest.json", b"<html>")
    with pytest.raises(RepositoryError, match="is not a valid manifest"):
        only_model(settings_of(bucket.url, tmp_path))


def test_a_copy_that_was_damaged_is_made_anew(bucket: Bucket, models: Path, tmp_path: Path) -> None:
    bucket.add(models)
    settings = settings_of(bucket.url, tmp_path, model="b")
    model, _ = only_model(settings)
    model.model_path.write_bytes(b"?" * model.model_path.stat().st_size)
    again, _ = only_model(settings)
    assert again.model_path.read_bytes() == (models / "b" / "1" / "model.onnx").read_bytes()
    shutil.rmtree(again.path.parent)
    only_model(settings)


def test_what_is_being_put_into_a_bucket_is_not_whole(bucket: Bucket, models: Path, tmp_path: Path) -> None:
    bucket.add(models)
    holdings = holdings_of(settings_of(bucket.url, tmp_path))
    whole = holdings.survey()
    assert (whole.missing("b", 1), whole.missing("a", 2)) == ("", "")
    size = (models / "b" / "1" / "model.onnx").stat().st_size
    bucket.put("b/1/model.onnx", b"short")
    cut_off = holdings.survey()
    assert cut_off.missing("b", 1) == f"b/1/model.onnx has 5 bytes of {size}"
    bucket.put("b/1/model.onnx", (models / "b" / "1" / "model.onnx").read_bytes())
    bucket.remove("b/1/labels.tsv")
    assert "labels.tsv has no bytes" in holdings.survey().missing("b", 1)
    assert whole.stamp("a", [2]) == cut_off.stamp("a", [2])
    bucket.put("a/2/manifest.json", (models / "a" / "2" / "manifest.json").read_bytes() + b"\n")
    assert whole.stamp("a", [2]) != holdings.survey().stamp("a", [2])


def test_a_web_server_needs_no_index_for_what_is_named(https: WebServer, models: Path, tmp_path: Path) -> None:
    https.add(models)
    url = https.url
    assert opened(settings_of(url, tmp_path, model="a:1,b:1")) == [("a", 1), ("b", 1)]
    assert opened(settings_of(url, tmp_path, model="b", model_version=1)) == [("b", 1)]
    with pytest.raises(RepositoryError, match=r"has no index.json, so that only models named as NAME:VERSION"):
        only_model(settings_of(url, tmp_path, model="a"))
    with pytest.raises(RepositoryError, match=r"/a/9/manifest.json cannot be read: there is no such file"):
        only_model(settings_of(url, tmp_path, model="a:9"))


def test_a_web_servers_index_says_what_there_is(https: WebServer, models: Path, tmp_path: Path) -> None:
    https.add(models)
    https.files["index.json"] = json.dumps({"a": [1, 2], "b": [1]}).encode()
    https.files["a/settings.toml"] = b"top_k = 2\n"
    repository = ModelRepository(settings_of(https.url, tmp_path, model="a,all"))
    assert repository.listed() == {"a": (1, 2), "b": (1,)}
    assert [(each.name, each.version) for each in repository.at_start()] == [("a", 2), ("b", 1)]
    assert repository.at_start()[0].settings.top_k == 2
    assert len(https.gets("a/2/model.onnx")) == 1
    https.files["index.json"] = json.dumps({"a": [1]}).encode()
    assert repository.wanted("a") == (1,)
    with pytest.raises(UnknownModel):
        repository.wanted("b")


@pytest.mark.parametrize(
    "index", [b"[1]", b"{", b'{"a": 1}', b'{"a": ["x"]}', b'{"../a": [1]}', b'{"a": [0]}', b'"text"', b"\xff"]
)
def test_what_is_no_index_is_refused(https: WebServer, tmp_path: Path, index: bytes) -> None:
    https.files["index.json"] = index
    with pytest.raises(RepositoryError, match=r"index.json"):
        only_model(settings_of(https.url, tmp_path))


def test_a_certificate_of_nobody_known_is_refused(
    https: WebServer, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    https.add(models)
    with pytest.raises(RemoteFailed, match="the certificate: UnknownIssuer"):
        only_model(settings_of(https.url, tmp_path, model="b:1"))


def test_over_plain_http_only_pinned_versions_are_served(models: Path, tmp_path: Path) -> None:
    with web_server() as server:
        server.add(models)
        server.files["b/settings.toml"] = b"top_k = 2\n"
        with pytest.raises(RepositoryError, match=r"plain http, .* name the model as b:1@sha256:DIGEST"):
            only_model(settings_of(server.url, tmp_path, model="b:1"))
        assert server.gets("b/1/manifest.json") == []
        pinned = settings_of(server.url, tmp_path, model=f"b:1@sha256:{digest_of(models, 'b', 1)}")
        model, settings = only_model(pinned)
        assert (model.manifest.name, settings.top_k) == ("b", 5)  # which nobody has pinned


def test_a_broken_copy_goes_on_in_the_next_start(https: WebServer, models: Path, tmp_path: Path) -> None:
    https.add(models)
    settings = settings_of(https.url, tmp_path, model="b:1")
    del https.files["b/1/labels.tsv"]
    with pytest.raises(RepositoryError, match=r"/b/1/labels.tsv cannot be read: there is no such file"):
        only_model(settings)
    assert list((tmp_path / "cache").rglob("manifest.json")) == []
    https.add(models)
    https.requests.clear()
    only_model(settings)
    assert (len(https.gets("b/1/labels.tsv")), https.gets("b/1/model.onnx")) == (1, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_in_the_midst_of_a_copy_is_said_and_given_back(
    bucket: Bucket, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    bucket.add(models)
    settings = settings_of(bucket.url, tmp_path, model="b")
    download = remote_holdings.download

    def until_full(store: RemoteStore, path: str, target: Path, **rest: Any) -> str:
        if path.endswith("labels.tsv"):
            raise OSError(number, os.strerror(number))
        return download(store, path, target, **rest)

    monkeypatch.setattr(remote_holdings, "download", until_full)
    with pytest.raises(RepositoryError, match=rf"the cache of models .* cannot be used: {os.strerror(number)}"):
        only_model(settings)
    assert list((tmp_path / "cache").rglob("model.onnx")) == []
    monkeypatch.setattr(remote_holdings, "download", download)
    only_model(settings)


LISTINGS = {
    "gs": """<ListBucketResult><Name>b</Name><Prefix>of/</Prefix>{}</ListBucketResult>""",
    "az": """<EnumerationResults><Prefix>of/</Prefix><Blobs>{}</Blobs><NextMarker/></EnumerationResults>""",
}
ENTRIES = {
    "gs": "<Contents><Key>of/{}</Key><LastModified>2026-11-28T10:00:00.000Z</LastModified><ETag>&quot;{}&quot;</ETag>"
    "<Size>{}</Size></Contents>",
    "az": "<Blob><Name>of/{0}</Name><Properties><Last-Modified>Sat, 28 Nov 2026 10:00:00 GMT</Last-Modified>"
    "<Content-Length>{2}</Content-Length><Content-Type>text/plain</Content-Type><Etag>{1}</Etag></Properties></Blob>",
}


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_other_clouds_are_read_by_their_own_protocols(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Against what a stand-in answers; signatures are not looked at."""
    with web_server() as server:
        server.add(models / "b")
        files = {f"b/{path}": content for path, content in server.files.items()}
        root = {"gs": "bucket", "az": "somebody/bucket"}[scheme]
        server.files = {f"{root}/of/{path}": content for path, content in files.items()}
        entries = [ENTRIES[scheme].format(path, len(path), len(content)) for path, content in files.items()]
        server.files[root] = LISTINGS[scheme].format("".join(entries)).encode()
        if scheme == "gs":
            account = {"gcs_base_url": server.url, "disable_oauth": True, "client_email": "", "private_key": ""}
            account["private_key_id"] = ""
            monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
        else:
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
            monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(SECRET.encode()).decode())
            monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{server.url}/somebody")
        settings = settings_of(f"{scheme}://bucket/of", tmp_path)
        assert opened(settings) == [("b", 1)]
        server.status = 403
        with pytest.raises(RemoteFailed, match=f"{scheme}://bucket/of cannot be read: .* 403 Forbidden") as raised:
            ModelRepository(settings).listed()
        assert "?" not in str(raised.value)
