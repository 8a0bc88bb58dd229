"""The software bill of materials of a serving environment, in CycloneDX: every locked package, its licence, its hashes.

    python -m deploy.sbom requirements/serve-cpu.txt --python .venv/serve/bin/python --output build/sbom-cpu.json

What is installed says licences and who depends on whom, and the locks say what may be installed and by which hashes.
The bill has the packages of the locks, as they are installed; one that is missing, or there in another version, is an
error. It comes out valid against CycloneDX's schema, and the same from the same environment and locks.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VERSION = SchemaVersion.V1_6
_PROJECT = Path(__file__).parent.parent / "pyproject.toml"


class WrongEnvironment(Exception):
    """An environment does not have what its locks pin, or is none."""


@dataclass(frozen=True)
class Pinned:
    """A package as a lock has it."""

    version: str
    hashes: tuple[str, ...]
    """SHA-256 of each of its files, of which one is installed."""


def pinned(locks: Iterable[Path]) -> dict[str, Pinned]:
    """Return what locks pin for this platform, by normalised names; raises WrongEnvironment where they contradict."""
    found: dict[str, Pinned] = {}
    for lock in locks:
        lines = lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        for line in lines:
            text = line.partition(" --hash")[0].partition("#")[0].strip()
            if not text or text.startswith("-"):
                continue
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            name = canonicalize_name(requirement.name)
            package = Pinned(str(requirement.specifier).removeprefix("=="), tuple(_HASH.findall(line)))
            if found.setdefault(name, package).version != package.version:
                raise WrongEnvironment(f"{name} has two versions in the locks")
    return found


def bill_of(python: Path, packages: dict[str, Pinned], project: Path = _PROJECT) -> dict[str, Any]:
    """Return the bill of an environment's packages; raises WrongEnvironment where it lacks one."""
    bill = _environment(python, project)
    found: dict[str, Any] = {canonicalize_name(one["name"]): one for one in bill["components"]}
    for name, package in packages.items():
        version = found[name]["version"] if name in found else "not"
        if version != package.version:
            raise WrongEnvironment(f"{name} {package.version} is locked, and {version} installed by {python}")
        if package.hashes:
            _add_hashes(found[name], package)
    bill["components"] = [one for name, one in found.items() if name in packages]
    kept = {one["bom-ref"] for one in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    bill["dependencies"] = [
        {**one, "dependsOn": sorted(kept.intersection(one.get("dependsOn", ())))}
        for one in bill["dependencies"]
        if one["ref"] in kept
    ]
    return bill


def write(bill: dict[str, Any], output: Path) -> None:
    """Write a bill; raises ValueError where it is not valid by CycloneDX's schema."""
    text = json.dumps(bill, indent=2) + "\n"
    if error := JsonStrictValidator(_VERSION).validate_str(text):
        raise ValueError(f"the bill is not valid CycloneDX: {error}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")


def _environment(python: Path, project: Path) -> dict[str, Any]:
    tool = [sys.executable, "-m", "cyclonedx_py", "environment", "--spec-version", _VERSION.to_version()]
    options = ["--output-reproducible", "--no-validate", "--pyproject", str(project), "-o", "-", str(python)]
    ended = subprocess.run([*tool, *options], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise WrongEnvironment(f"{python}: {ended.stderr.strip()}")
    bill: dict[str, Any] = json.loads(ended.stdout)
    return bill


def _add_hashes(component: dict[str, Any], package: Pinned) -> None:
    """Say by which hashes a package's files are taken; they are of its distribution, not of what was unpacked."""
    reference = {
        "type": "distribution",
        "url": f"https://pypi.org/project/{component['name']}/{package.version}/#files",
        "comment": "the files that the lock takes",
        "hashes": [{"alg": "SHA-256", "content": one} for one in package.hashes],
    }
    component.setdefault("externalReferences", []).append(reference)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the bill that the command line asks for, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.sbom", description=__doc__.splitlines()[0])
    parser.add_argument("locks", nargs="+", type=Path, help="locks whose packages the environment has")
    parser.add_argument("--python", type=Path, required=True, help="interpreter of the environment")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    try:
        packages = pinned(options.locks)
        write(bill_of(options.python, packages), options.output)
    except (WrongEnvironment, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
