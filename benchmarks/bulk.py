"""Bulk in process beside the server: images a second of the same photos, in turn.

Bulk reads copies of the photos from a folder, computes predictions and the embedding, and writes both; its time is its
own, from its first image to its last finished part. The server answers classifications of the load generator, from
memory, in a closed loop. Both have the machine to themselves in their turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.scenarios import SATURATING_CONCURRENCY, Bench, Result, median

_FORMS = ("files", "shard")


def bulk(bench: Bench) -> Result:
    """Return the rates of both, and the medians of each round's ratio."""
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, bench.serve() as target:
        root = Path(folder)
        images = _image_count(bench, bench.capacity(target))
        inputs = _write_inputs(bench, root, images)
        for number in range(bench.rounds):
            rates = {
                form: _bulk(bench, given, root / f"{form}{number}", images=images) for form, given in inputs.items()
            }
            rates["server"] = bench.load(target, "--concurrency", SATURATING_CONCURRENCY)["goodput_images_per_s"]
            rounds.append(rates)
    return {
        "images": images,
        "rows": [
            {
                "input": form,
                "images_per_s": median([rates[form] for rates in rounds], 1),
                "server_images_per_s": median([rates["server"] for rates in rounds], 1),
                "over_server": median([rates[form] / rates["server"] for rates in rounds]),
            }
            for form in _FORMS
        ],
    }


def _image_count(bench: Bench, images_per_s: float) -> int:
    return max(1, round(images_per_s * bench.duration_s))


def _write_inputs(bench: Bench, root: Path, images: int) -> dict[str, Path]:
    """Write that many photos as files, which are links, and as a tar shard."""
    files, shard = root / "photos", root / "photos.tar"
    files.mkdir()
    with tarfile.open(shard, "w") as archive:
        for number in range(images):
            photo = bench.files[number % len(bench.files)]
            name = f"{number:08}{photo.suffix}"
            os.link(photo, files / name)
            member = tarfile.TarInfo(name)  # not from the file, which would be a link when it comes again
            member.size = photo.stat().st_size
            with photo.open("rb") as file:
                archive.addfile(member, file)
    return {"files": files, "shard": shard}


def _bulk(bench: Bench, given: Path, out: Path, *, images: int) -> float:
    """Run bulk, and return its images per second."""
    command = [sys.executable, "-m", "service", "bulk", str(given), "--out", str(out), "--device", bench.device]
    command += ["--repository", str(bench.repository), "--model", bench.model, *bench.options]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    summary: dict[str, Any] = json.loads(ran.stdout)
    if summary["images"] != images:
        raise RuntimeError(f"bulk found {summary['images']} of {images} images in {given}")
    return float(summary["images_per_s"])
