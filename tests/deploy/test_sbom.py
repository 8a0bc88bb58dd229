"""The bill of materials of what serves: valid, whole, and of nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy import sbom

ROOT = Path(__file__).parent.parent.parent
LOCKS = ROOT / "requirements"
SERVING = ROOT / ".venv/serve/bin/python"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("sbom") / "build" / "sbom-cpu.json"
    assert sbom.main([str(LOCKS / "serve-cpu.txt"), "--python", str(SERVING), "--output", str(output)]) == 0
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bill(written: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(written)
    return document


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_bill_is_valid_by_the_schema(written: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written) is None


def test_every_pinned_package_is_in_it_in_its_version_and_no_other(bill: dict[str, Any]) -> None:
    frozen = {normal(one["name"]): one["version"] for one in bill["components"]}
    lines = (LOCKS / "serve-cpu.txt").read_text(encoding="utf-8").splitlines()
    locked = [re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line) for line in lines]
    pairs = {(normal(one[1]), one[2]) for one in locked if one}
    assert set(frozen) == {name for name, _ in pairs}
    assert frozen.items() <= pairs
    assert len(frozen) > 30


def test_each_has_a_licence_and_the_hashes_of_its_lock(bill: dict[str, Any]) -> None:
    lock = (LOCKS / "serve-cpu.txt").read_text(encoding="utf-8")
    unlicensed = set()
    for component in bill["components"]:
        assert component["purl"].endswith(f"@{component['version']}")
        distributions = [one for one in component["externalReferences"] if one.get("hashes")]
        assert len(distributions) == 1
        for one in distributions[0]["hashes"]:
            assert one["alg"] == "SHA-256"
            assert f"--hash=sha256:{one['content']}" in lock
        if not component.get("licenses"):
            unlicensed.add(component["name"])
    assert unlicensed <= {"protobuf"}  # whose metadata name none


def test_bill_is_of_this_project_and_says_what_depends_on_what(bill: dict[str, Any]) -> None:
    assert bill["metadata"]["component"]["name"] == "dat-serve"
    names = {one["bom-ref"]: normal(one["name"]) for one in bill["components"]}
    links = {names.get(one["ref"]): {names[other] for other in one["dependsOn"]} for one in bill["dependencies"]}
    assert {"starlette", "pydantic"} <= links["fastapi"]
    assert "flatbuffers" in links["onnxruntime"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("numpy==1.0.0", r"numpy 1\.0\.0 is locked, and [0-9.]+ installed"),
        ("no-such-package==1.0", r"no-such-package 1\.0 is locked, and not installed"),
    ],
)
def test_environment_that_is_not_its_locks_is_an_error(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"# a comment\n{line}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        sbom.main([str(lock), "--python", str(SERVING), "--output", str(tmp_path / "bill.json")])
    assert ended.value.code == 1
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "bill.json").exists()


def test_no_python_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.sbom", str(LOCKS / "heic.txt"), "--python", str(tmp_path / "none")]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "bill.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert str(tmp_path / "none") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_markers_choose_and_locks_must_agree(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    digest = "0" * 64
    one.write_text(
        f"a.b==1.0 ; python_version < '3.0' \\\n    --hash=sha256:{'1' * 64}\n"
        f"A_B==2.0 ; python_version >= '3.0' \\\n    --hash=sha256:{digest}\n    # via\n    #   -c other.txt\n",
        encoding="utf-8",
    )
    two.write_text("a-b==3.0\n", encoding="utf-8")
    assert sbom.pinned([one]) == {"a-b": sbom.Pinned("2.0", (digest,))}
    with pytest.raises(sbom.WrongEnvironment, match="a-b has two versions"):
        sbom.pinned([one, two])
