"""What the load generator's requests look like: rendered whole and once, in any form that carries images."""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PRIORITIES = ("interactive", "bulk")
RAW, FORM, JSON = FORMS = ("raw", "form", "json")
"""Ways to send images: one as the body, several as parts of a form, several as base64 in JSON."""
_BOUNDARY = "----part-of-the-load"


@dataclass(frozen=True, slots=True)
class Shape:
    """What requests look like: `bulk_share` of them are bulk, `target` is the path and query of every one.

    Each has `images` of the files, the next ones in turn, in the form that `form` says; a raw one has one.
    """

    host: str
    files: Sequence[bytes]
    target: str = "/v1/classify"
    bulk_share: float = 0.0
    seed: int = 0
    form: str = RAW
    images: int = 1

    def requests(self) -> Iterator[tuple[bytes, str]]:
        """Yield rendered requests and their priorities without end, the same ones for the same seed."""
        joint = "&" if "?" in self.target else "?"
        bodies = self._bodies()
        rendered = {
            priority: [self._rendered(f"{self.target}{joint}priority={priority}", *body) for body in bodies]
            for priority in PRIORITIES
        }
        rng = random.Random(self.seed)
        while True:
            for index in range(len(bodies)):
                priority = PRIORITIES[rng.random() < self.bulk_share]
                yield rendered[priority][index], priority

    def _bodies(self) -> list[tuple[str, bytes]]:
        """Return the content types and bodies that follow each other, until they would begin anew."""
        count = len(self.files) // math.gcd(len(self.files), self.images)
        turns = itertools.cycle(self.files)
        groups = [list(itertools.islice(turns, self.images)) for _ in range(count)]
        if self.form == RAW:
            if self.images > 1:
                raise ValueError(f"a raw body is one image, not {self.images}")
            return [("image/jpeg", image) for (image,) in groups]
        return [_form_of(group) if self.form == FORM else _json_of(group) for group in groups]

    def _rendered(self, target: str, content_type: str, body: bytes) -> bytes:
        head = (
            f"POST {target} HTTP/1.1\r\nHost: {self.host}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _form_of(images: Sequence[bytes]) -> tuple[str, bytes]:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    parts = b"".join(head + image + b"\r\n" for image in images)
    return f"multipart/form-data; boundary={_BOUNDARY}", parts + f"--{_BOUNDARY}--\r\n".encode()


def _json_of(images: Sequence[bytes]) -> tuple[str, bytes]:
    return "application/json", json.dumps({"images": [base64.b64encode(image).decode() for image in images]}).encode()
