"""A version appears whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export.errors import ExportError
from export.publish import check_free, new_version, next_version
from service.model.directory import find_models


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
    with pytest.raises(ExportError, match=f"{target} .*--version"), new_version(tmp_path, "dat", 1):
        pytest.fail("the block must not be entered")
    assert everything(tmp_path) == before


def test_version_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "dat" / "1"

    def publish_beside_another() -> None:
        with new_version(tmp_path, "dat", 1) as directory:
            (directory / "model.onnx").write_bytes(b"second")
            target.mkdir(parents=True)
            (target / "model.onnx").write_bytes(b"first")

    with pytest.raises(ExportError, match=str(target)):
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
    with pytest.raises(ExportError, match=re.escape(repr(name))):
        check_free(tmp_path, name, 1)


def test_version_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="version 0"):
        check_free(tmp_path, "dat", 0)
