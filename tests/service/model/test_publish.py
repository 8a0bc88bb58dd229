"""A version appears whole or not at all."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from service.errors import RepositoryError
from service.model import publish
from service.model.directory import find_models, open_model
from service.model.publish import check_free, derive_version, new_version, next_version
from tests.service import tiny_model


def everything(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_version_appears_at_the_end_and_whole(tmp_path: Path) -> None:
    repository = tmp_path / "models" / "repository"
    with new_version(repository, "dat", 3) as directory:
        (directory / "manifest.json").write_text("{}")
        assert not (repository / "dat").exists()
        assert find_models(repository) == {}
    assert everything(repository) == ["dat", "dat/3", "dat/3/manifest.json"]
    assert find_models(repository) == {"dat": (3,)}


def publish_but_fail(repository: Path, failure: BaseException) -> None:
    with new_version(repository, "dat", 2) as directory:
        (directory / "model.onnx").write_bytes(b"half")
        raise failure


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing_behind(failure: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(failure):
        publish_but_fail(tmp_path / "models" / "repository", failure())
    assert everything(tmp_path) == []


def test_failure_leaves_other_versions_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "dat" / "1").mkdir(parents=True)
    (tmp_path / "dat" / "1" / "model.onnx").write_bytes(b"first")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="half"):
        publish_but_fail(tmp_path, ValueError("half"))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", ["full", "empty", "file", "dangling link"])
def test_existing_version_is_never_overwritten(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "dat" / "1"
    target.parent.mkdir()
    if kind == "file":
        target.write_text("something")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
    if kind == "full":
        (target / "model.onnx").write_bytes(b"first")
    before = everything(tmp_path)
    with pytest.raises(RepositoryError, match=f"{target} .*--version"), new_version(tmp_path, "dat", 1):
        pytest.fail("the block must not be entered")
    assert everything(tmp_path) == before


def test_version_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "dat" / "1"

    def publish_beside_another() -> None:
        with new_version(tmp_path, "dat", 1) as directory:
            (directory / "model.onnx").write_bytes(b"second")
            target.mkdir(parents=True)
            (target / "model.onnx").write_bytes(b"first")

    with pytest.raises(RepositoryError, match=str(target)):
        publish_beside_another()
    assert everything(tmp_path) == ["dat", "dat/1", "dat/1/model.onnx"]
    assert (target / "model.onnx").read_bytes() == b"first"


def test_leftovers_of_a_killed_export_are_passed_over(tmp_path: Path) -> None:
    leftover = tmp_path / ".dat-k1lled" / "dat" / "1"
    leftover.mkdir(parents=True)
    (leftover / "manifest.json").write_text("{")
    assert next_version(tmp_path, "dat") == 1
    with new_version(tmp_path, "dat", 1) as directory:
        (directory / "manifest.json").write_text("{}")
    assert find_models(tmp_path) == {"dat": (1,)}


def test_next_version_follows_the_highest(tmp_path: Path) -> None:
    for entry in ("2", "10", "notes", "03"):
        (tmp_path / "dat" / entry).mkdir(parents=True)
    assert next_version(tmp_path, "dat") == 11
    assert next_version(tmp_path, "other") == 1


@pytest.mark.parametrize("name", ["../escape", ".hidden", "", "a/b", "a b", "x" * 129])
def test_name_that_is_not_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=re.escape(repr(name))):
        check_free(tmp_path, name, 1)


def test_version_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="version 0"):
        check_free(tmp_path, "dat", 0)


def test_a_version_is_derived_from_another_without_copying_what_it_shares(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path))
    path = derive_version(model, temperature=0.5)
    derived = open_model(path)
    assert path == tmp_path / tiny_model.NAME / str(tiny_model.VERSION + 1)
    assert (derived.manifest.temperature, model.manifest.temperature) == (0.5, None)
    assert derived.manifest == model.manifest.model_copy(
        update={"version": derived.manifest.version, "temperature": 0.5}
    )
    assert all((path / name).samefile(model.path / name) for name in model.manifest.files)
    assert open_model(derive_version(derived, temperature=2.0)).manifest.version == tiny_model.VERSION + 2


def test_where_files_cannot_be_linked_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    model = open_model(tiny_model.write(tmp_path))
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = derive_version(model, temperature=0.5)
    assert open_model(path).labels == model.labels
    assert not (path / "model.onnx").samefile(model.model_path)


def test_what_is_not_the_manifests_any_more_is_not_taken_over(tmp_path: Path) -> None:
    model = open_model(tiny_model.write(tmp_path))
    model.model_path.write_bytes(b"x" * model.manifest.files["model.onnx"].size_bytes)
    before = everything(tmp_path)
    with pytest.raises(RepositoryError, match="does not match its manifest"):
        derive_version(model, temperature=0.5)
    assert everything(tmp_path) == before


def test_a_full_disk_leaves_the_repository_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    model = open_model(tiny_model.write(tmp_path))
    before = everything(tmp_path)
    monkeypatch.setattr(publish, "_link", fail)
    with pytest.raises(RepositoryError, match="cannot be written: No space left"):
        derive_version(model, temperature=0.5)
    assert everything(tmp_path) == before
