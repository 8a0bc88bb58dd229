"""Every example runs as its first lines say, against the demo model, and prints what is right."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import httpx
import pytest
from PIL import Image

from models.demo.digits import training_and_held_out
from tests.conftest import ExportOnce
from tests.docs.pages import blocks_run_by, code_of, rows_of
from tests.docs.running import lay_out, run_block
from tests.integration.conftest import PATIENCE_S, ROOT, service_process

EXAMPLES = ROOT / "examples"
PROGRAMS = CLASSIFY_HTTPX, CLASSIFY_ASYNC, MANY_IMAGES, NEAREST_NEIGHBOURS, TRITONCLIENT = (
    "classify_httpx.py", "classify_async.py", "many_images.py", "nearest_neighbours.py", "tritonclient_classify.py",
)  # fmt: skip
"""Each is run below."""
A_CLASS = 6


@pytest.fixture(scope="module")
def server(exported: ExportOnce) -> Iterator[str]:
    with service_process(exported("dat_demo"), "--threads", "1") as process:
        yield f"127.0.0.1:{process.port}"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some held-out digits of each class that the demo model reads right: <class>/<number>.png."""
    root = tmp_path_factory.mktemp("digits")
    held_out = training_and_held_out()[1]
    for digit in range(10):
        (root / str(digit)).mkdir()
        for number, image in enumerate(held_out.images[held_out.classes == digit][10 : 10 + A_CLASS]):
            Image.fromarray(image).save(root / str(digit) / f"{number}.png")
    return root


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def python(example: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, EXAMPLES / example, *arguments)


def test_curl_shows_every_form_and_an_error(server: str, digits: Path) -> None:
    ended = run("sh", EXAMPLES / "curl.sh", digits / "8" / "0.png", f"http://{server}")
    assert ended.returncode == 0, ended.stderr
    parts = re.split(r"^# .*$", ended.stdout, flags=re.MULTILINE)[1:]
    raw, form, document = (json.loads(part)["results"] for part in parts[:3])
    assert [len(results) for results in (raw, form, document)] == [1, 2, 1]
    for result in (*raw, *form, *document):
        assert result["predictions"][0]["label"] == "8"
    assert len(raw[0]["predictions"]) == 3
    assert int(parts[3].split()[0]) > (128 + 10) * 4
    assert json.loads(parts[4])["errors"][0]["code"] == "unsupported_format"


def test_httpx_classifies_several_images_and_names_the_bad_one(server: str, digits: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    given = (digits / "2" / "1.png", broken, digits / "5" / "3.png")
    ended = python(CLASSIFY_HTTPX, *given, "--url", f"http://{server}", "--top-k", 1)
    assert ended.returncode == 0, ended.stderr
    first, second, third = ended.stdout.splitlines()
    assert re.fullmatch(r"1\.png: 2 0\.\d{4}", first)
    assert second.startswith("broken.png: unsupported_format: ")
    assert re.fullmatch(r"3\.png: 5 0\.\d{4}", third)


def test_httpx_shows_what_is_wrong_with_a_request(server: str, digits: Path) -> None:
    ended = python(CLASSIFY_HTTPX, digits / "2" / "1.png", "--url", f"http://{server}", "--top-k", 0)
    assert ended.returncode == 1
    assert re.match(r"invalid_parameter: top_k: .*\(request \w+\)", ended.stderr)


def test_async_requests_are_answered_in_order(server: str, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    given = [*(digits / str(digit) / "2.png" for digit in range(10)), tmp_path / "broken.png"]
    ended = python(CLASSIFY_ASYNC, *given, "--url", f"http://{server}")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines[:10]] == list("0123456789")
    assert ": unsupported_format: " in lines[10]


def test_many_images_are_all_answered(server: str, digits: Path) -> None:
    ended = python(MANY_IMAGES, digits, "--url", f"http://{server}", "--concurrency", 2)
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert sorted(answer["path"] for answer in answers) == sorted(map(str, digits.rglob("*.png")))
    for answer in answers:
        assert answer["predictions"][0]["label"] == Path(answer["path"]).parent.name


def test_many_images_share_requests_and_the_bad_ones_are_named(server: str, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(digits, folder)
    bad = {"broken.png": (b"no image", "unsupported_format"), "empty.png": (b"", "empty_image")}
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data)
    before = samples_of(server)
    ended = python(MANY_IMAGES, folder, "--url", f"http://{server}")
    assert (ended.returncode, ended.stderr) == (1, "2 images could not be classified\n")
    answers = {Path(line["path"]): line for line in map(json.loads, ended.stdout.splitlines())}
    assert len(answers) == 10 * A_CLASS + 2
    for path, answer in answers.items():
        if path.name in bad:
            assert answer["error"]["code"] == bad[path.name][1]
        else:
            assert answer["predictions"][0]["label"] == path.parent.name
    assert samples_of(server) - before == 4  # 62 images, of which 16 share a request


def samples_of(server: str) -> float:
    """How many requests for classes were answered."""
    text = httpx.get(f"http://{server}/metrics", timeout=PATIENCE_S).text
    counts = re.findall(r'^dat_requests_total\{[^}]*route="/v1/classify"[^}]*\} (\S+)$', text, re.MULTILINE)
    return sum(map(float, counts))


def test_images_that_fit_no_request_together_are_asked_for_alone(
    exported: ExportOnce, digits: Path, tmp_path: Path
) -> None:
    for number in range(3):
        shutil.copy(digits / "7" / f"{number}.png", tmp_path / f"{number}.png")
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(5000))
    with service_process(exported("dat_demo"), "--threads", "1", "--max-body-bytes", "2000") as process:
        ended = python(MANY_IMAGES, tmp_path, "--url", f"http://127.0.0.1:{process.port}")
    answers = {Path(line["path"]).name: line for line in map(json.loads, ended.stdout.splitlines())}
    assert answers.pop("large.png")["error"]["code"] == "too_large"
    assert [answer["predictions"][0]["label"] for answer in answers.values()] == ["7"] * 3


class Busy(BaseHTTPRequestHandler):
    """Refuses the first of every request, and every one that has a broken image; several at a time where it says so."""

    protocol_version = "HTTP/1.1"
    max_images: int
    takes: int
    """Images that it takes in fact."""
    seen: set[tuple[bytes, ...]]
    counts: list[int]
    """Images of each request."""
    lock: Lock

    def do_GET(self) -> None:
        limits = {"max_images": self.max_images, "max_body_bytes": 1 << 25}
        self._answer(200, "application/json", {"default": "a", "limits": limits, "models": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        images = tuple(re.findall(rb"\r\n\r\n(\w+)\r\n--", body))
        with self.lock:
            is_known = images in self.seen
            self.seen.add(images)
            self.counts.append(len(images))
        if len(images) > self.takes:
            self._answer(413, "text/html", "Too large.")
        elif b"never" not in images and is_known:
            self._answer(200, "application/json", {"results": [{"predictions": [{"label": "7"}]}] * len(images)})
        else:
            problem = {"code": "overloaded", "detail": "The queue is full."}
            self._answer(429, "application/problem+json", problem, **{"Retry-After": "0"})

    def _answer(self, status: int, media_type: str, document: object, **headers: str) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": media_type, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_many_images_come_back_to_a_busy_service_and_give_up_in_the_end(tmp_path: Path) -> None:
    answers, ended, counts = many_from_busy(tmp_path, "a", "b", "never", max_images=1, takes=1)
    assert ended.returncode == 1
    assert ended.stderr == "1 images could not be classified\n"
    assert answers["never"]["error"] == {"code": "overloaded", "detail": "The queue is full."}
    assert [answers[name]["predictions"][0]["label"] for name in ("a", "b")] == ["7", "7"]
    assert counts == [1] * (2 + 2 + 3)


def test_a_request_that_is_refused_to_the_end_takes_its_images_along(tmp_path: Path) -> None:
    answers, ended, counts = many_from_busy(tmp_path, "a", "b", "never", max_images=8, takes=8)
    assert (ended.returncode, counts) == (1, [3, 3, 3])
    assert [answer["error"]["code"] for answer in answers.values()] == ["overloaded"] * 3


def test_a_request_that_is_too_large_for_a_proxy_is_sent_in_halves(tmp_path: Path) -> None:
    answers, ended, counts = many_from_busy(tmp_path, "a", "b", "c", "d", max_images=8, takes=2)
    assert (ended.returncode, sorted(answers)) == (0, ["a", "b", "c", "d"])
    assert counts == [4, 2, 2, 2, 2]


def many_from_busy(
    folder: Path, *images: str, max_images: int, takes: int
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str], list[int]]:
    """Ask a busy server for images that hold their names; return the answers by them, and images by request."""
    for name in images:
        (folder / f"{name}.png").write_text(name)
    facts = {"max_images": max_images, "takes": takes, "seen": set(), "counts": [], "lock": Lock()}
    kind = type("Fresh", (Busy,), facts)
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        ended = python(MANY_IMAGES, folder, "--url", url, "--tries", 3)
        server.shutdown()
        thread.join()
    answers = {Path(line["path"]).stem: line for line in map(json.loads, ended.stdout.splitlines())}
    return answers, ended, kind.counts


def test_nearest_neighbours_of_a_digit_are_the_same_digit(server: str, digits: Path) -> None:
    query = digits / "6" / "0.png"
    ended = python(NEAREST_NEIGHBOURS, digits, query, "--url", f"http://{server}", "--neighbours", 4)
    assert ended.returncode == 0, ended.stderr
    rows = [line.split("  ") for line in ended.stdout.splitlines()]
    assert rows[0] == ["1.0000", str(query)]
    similarities = [float(similarity) for similarity, _ in rows]
    assert similarities == sorted(similarities, reverse=True)
    assert [Path(path).parent.name for _, path in rows] == ["6"] * 4


def test_tritonclient_classifies(server: str, digits: Path) -> None:
    given = (digits / "1" / "0.png", digits / "9" / "0.png")
    ended = python(TRITONCLIENT, *given, "--url", server, "--top-k", 2)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 4
    assert [re.search(r"\.png: (\d) \(class (\d), logit", line).groups() for line in lines[::2]] == [  # type: ignore[union-attr]
        ("1", "1"), ("9", "9"),
    ]  # fmt: skip


def test_commands_of_the_readme_run_as_they_stand(server: str, tmp_path: Path) -> None:
    """Those of examples/README.md, in a directory like a fresh clone, each told of this server."""
    lay_out(tmp_path)
    (block,) = blocks_run_by(__file__)
    text = re.sub(r"(\.sh .*)$", rf"\1 http://{server}", block.text, flags=re.MULTILINE)
    text = re.sub(r"(\.py .*)$", rf"\1 --url http://{server}", text, flags=re.MULTILINE)
    ended = run_block(replace(block, text=text), directory=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "7.png: 7 " in ended.stdout
    assert (
        len(
            re.findall(
                r'^\{"path": "examples/digits/(\d)/\d\.png", "predictions": .*"label": "\1"', ended.stdout, re.MULTILINE
            )
        )
        == 20
    )
    assert re.search(
        r"^1\.0000  examples/digits/7/\d\.png$|^0\.9\d+  examples/digits/7/\d\.png$", ended.stdout, re.MULTILINE
    )


def test_pictures_show_what_they_are_named_after(server: str) -> None:
    pictures = {path: path.stem for path in (EXAMPLES / "images").glob("?.png")}
    pictures |= {path: path.parent.name for path in (EXAMPLES / "digits").rglob("*.png")}
    assert len(pictures) == 22
    with httpx.Client(base_url=f"http://{server}", timeout=PATIENCE_S) as client:
        for path, label in pictures.items():
            (result,) = client.post("/v1/classify?top_k=1", files={"image": path.read_bytes()}).json()["results"]
            assert (path, result["predictions"][0]["label"]) == (path, label)


def test_every_example_is_listed_and_tested() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(PROGRAMS) == programs
    assert programs <= {name for cell, _ in rows_of(EXAMPLES / "README.md", "", "") for name in code_of(cell)}
