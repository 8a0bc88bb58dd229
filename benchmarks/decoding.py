"""What an image costs before it is computed: `python -m benchmarks.decoding [--cores N]`.

Decoding and resizing a JPEG file by itself, one thread after the other, and what would be left of it to the processor
if the device resized: decoding to full size, in memory from which it is sent. Contenders take turns within each round.
Prints processor time of an image and what so many cores would do in a second, and writes `decoding.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.limits import photos
from benchmarks.machine import describe
from benchmarks.rounds import Turn, play
from benchmarks.tables import table
from service.images import bicubic
from service.images.limits import DEFAULT_LIMITS
from service.images.preprocessing import (
    Preprocessing,
    decode_usual_jpeg,
    prepare_pillow,
    resize_and_crop,
    resize_and_crop_with_pillow,
)

PREPROCESSING = Preprocessing(resize=(256, 256), crop=(224, 224))
BASELINE = "decode, resize by Pillow"


def contenders(files: Sequence[bytes]) -> dict[str, Callable[[], object]]:
    """Return what is measured, each for the next of the files, which are JPEG files of one size."""
    height, width, *_ = simplejpeg.decode_jpeg_header(files[0])
    slot = np.empty((height, width, 3), np.uint8)
    ready = [Image.fromarray(simplejpeg.decode_jpeg(data, "RGB")) for data in files]
    turns, images = itertools.cycle(files), itertools.cycle(ready)

    def decoded() -> Image.Image:
        image = decode_usual_jpeg(next(turns), DEFAULT_LIMITS)
        assert image is not None
        return image

    return {
        "decode": decoded,
        "resize by Pillow": lambda: resize_and_crop_with_pillow(next(images), PREPROCESSING),
        "resize by the library": lambda: resize_and_crop(next(images), PREPROCESSING),
        BASELINE: lambda: resize_and_crop_with_pillow(decoded(), PREPROCESSING),
        "decode, resize by the library": lambda: resize_and_crop(decoded(), PREPROCESSING),
        "decode to full size, to be sent": lambda: simplejpeg.decode_jpeg(
            next(turns), "RGB", fastdct=False, fastupsample=False, buffer=slot.reshape(-1)
        ),
        "copy what Pillow decoded, to be sent": lambda: np.copyto(slot, np.asarray(next(images))),
    }


def rows_of(turns: dict[str, list[Turn]], *, cores: int) -> list[dict[str, Any]]:
    """Return a row for each contender: medians, of its time and of the ratio of the baseline's in the same round."""
    return [
        {
            "contender": name,
            "cpu_ms": round(median(turn.cpu_ms for turn in own), 3),
            "speed_over_pillow": round(
                median(one.cpu_ms / other.cpu_ms for one, other in zip(turns[BASELINE], own, strict=True)), 2
            ),
            f"images_per_s_of_{cores}_cores": round(cores * 1000 / median(turn.cpu_ms for turn in own)),
            "turns_cpu_ms": [round(turn.cpu_ms, 3) for turn in own],
        }
        for name, own in turns.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 where the library cannot resize here."""
    arguments = _parser().parse_args(argv)
    prepare_pillow()
    if reason := bicubic.load():
        print(reason, file=sys.stderr)
        return 1
    machine, files = describe(), photos()
    rows = rows_of(play(contenders(files), arguments.rounds), cores=arguments.cores)
    print(table([{name: figure for name, figure in row.items() if name != "turns_cpu_ms"} for row in rows]))
    height, width, *_ = simplejpeg.decode_jpeg_header(files[0])
    document = {
        "scenario": "decoding",
        "machine": machine,
        "file_bytes": [len(data) for data in files],
        "full_size_bytes": height * width * 3,
        "input_bytes": PREPROCESSING.crop[0] * PREPROCESSING.crop[1] * 3,
        "rows": rows,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "decoding.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cores", type=int, default=16, help="for which images a second are reckoned")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
