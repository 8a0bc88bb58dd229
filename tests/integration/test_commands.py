"""The commands as processes, on the demo model: in process and against a server, which must say the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.demo.digits import training_and_held_out
from service.__main__ import main
from service.commands import COMMANDS
from service.model.directory import ModelDirectory
from service.model.postprocess import softmax
from tests.api_keys import entry_of
from tests.conftest import ExportOnce
from tests.integration.conftest import PATIENCE_S, ROOT, service_process, service_thread
from tests.integration.conftest import model as model
from tests.integration.conftest import repository as repository
from tests.service.pictures import photo

IMAGES, RIGHT = 360, 356
"""Held-out digits, and how many of them the demo's weights read right."""
WRONG = {("0", "4"), ("5", "3"), ("6", "4"), ("9", "8")}


def command(*arguments: object, key: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DAT_")}
    if key is not None:
        environment["DAT_CLIENT_API_KEY"] = key
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-out digits in folders named after their classes."""
    root = tmp_path_factory.mktemp("digits")
    held_out = training_and_held_out()[1]
    for number, (image, digit) in enumerate(zip(held_out.images, held_out.classes.tolist(), strict=True)):
        (root / str(digit)).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / str(digit) / f"{number:03}.png")
    return root


@pytest.fixture(scope="module", params=["in process", "over HTTP"])
def answerer(request: pytest.FixtureRequest, exported: ExportOnce) -> Iterator[tuple[object, ...]]:
    """The options that choose who answers."""
    demo = exported("dat_demo")
    if request.param == "in process":
        yield ("--repository", demo, "--threads", 1)
        return
    with service_process(demo, "--threads", "1") as process:
        yield ("--url", f"http://127.0.0.1:{process.port}")


def test_evaluation_gives_the_known_accuracy(answerer: tuple[object, ...], digits: Path) -> None:
    ended = command("evaluate", digits, *answerer, "--format", "json", "--per-class")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["images"], report["complete"], report["unusable"]) == (IMAGES, True, [])
    assert (report["top1"]["correct"], report["top5"]["correct"]) == (RIGHT, IMAGES)
    low, high = report["top1"]["interval_95"]
    assert low < report["top1"]["accuracy"] == RIGHT / IMAGES < high
    assert {(each["label"], each["predicted_label"]) for each in report["confusions"]} == WRONG
    assert sum(each["top1"]["correct"] for each in report["classes"]) == RIGHT


def test_a_ground_truth_file_gives_the_same_and_unusable_images_count_as_wrong(
    answerer: tuple[object, ...], digits: Path, tmp_path: Path
) -> None:
    flat, truth = tmp_path / "flat", tmp_path / "truth.csv"
    flat.mkdir()
    lines = ["filename,class"]
    for file in sorted(digits.glob("*/*.png")):
        (flat / file.name).write_bytes(file.read_bytes())
        lines.append(f"{file.name},{file.parent.name}")
    (flat / "broken.png").write_bytes(b"no image")
    truth.write_text("\n".join([*lines, "broken.png,1", "missing.png,2"]))
    ended = command("evaluate", flat, "--ground-truth", truth, *answerer, "--format", "json")
    assert ended.returncode == 1
    report = json.loads(ended.stdout)
    assert (report["images"], report["top1"]["correct"]) == (IMAGES + 2, RIGHT)
    unusable = {Path(each["path"]).name: each["code"] for each in report["unusable"]}
    assert unusable == {"missing.png": "not_found", "broken.png": "unsupported_format"}
    assert all(name in ended.stderr for name in unusable)
    text = command("evaluate", flat, "--ground-truth", truth, *answerer).stdout
    assert f"({RIGHT} of {IMAGES + 2};" in text


@pytest.fixture(scope="module")
def large_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the digits, three of each class in large JPEG files, which the fast resize decodes at a fraction."""
    root = tmp_path_factory.mktemp("large")
    for folder in sorted(digits.iterdir()):
        (root / folder.name).mkdir()
        for number, file in enumerate(sorted(folder.iterdir())[:4]):
            with Image.open(file) as image:
                if number == 3:
                    image.save(root / folder.name / f"{number}.png")
                else:
                    image.convert("RGB").resize((700, 700)).save(root / folder.name / f"{number}.jpg", quality=90)
    (root / "7" / "broken.jpg").write_bytes(b"no image")
    return root


def test_both_resizes_are_evaluated_side_by_side(exported: ExportOnce, large_digits: Path) -> None:
    answerer = ("--repository", exported("dat_demo"), "--threads", 1)
    ended = command("evaluate", large_digits, *answerer, "--compare-resize", "--format", "json")
    assert ended.returncode == 1  # the broken one
    both = json.loads(ended.stdout)
    alone = {
        resize: json.loads(command("evaluate", large_digits, *answerer, "--resize", resize, "--format", "json").stdout)
        for resize in ("exact", "fast")
    }
    compared = both.pop("compared")
    assert both == alone["exact"]
    assert {name: compared[name] for name in ("images", "resize", "top1", "top5")} == {
        name: alone["fast"][name] for name in ("images", "resize", "top1", "top5")
    }
    assert (compared["images"], compared["moved_images"]) == (41, 30)
    changed = compared["changed_top1"]
    assert changed["became_right"] - changed["became_wrong"] == (
        alone["fast"]["top1"]["correct"] - alone["exact"]["top1"]["correct"]
    )
    assert changed["share"] == changed["images"] / 41
    largest = compared["largest_score_difference"]
    assert 0 < largest["difference"] < 0.5
    assert largest["path"].endswith(".jpg")
    text = command("evaluate", large_digits, *answerer, "--compare-resize").stdout
    assert "resize    exact\n" in text
    assert "resize    fast\nmoved     30 of 41 images; the others have the same pixels\n" in text
    assert f"score     {largest['difference']:.4f} is the largest difference: " in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [(("--url", "http://127.0.0.1:1"), "a model in this process"), (("--resize", "fast"), "leave out --resize")],
)
def test_resizes_that_cannot_be_compared_are_a_mistake(
    options: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path), "--compare-resize", *options]) == 2
    assert reason in capsys.readouterr().err


def test_names_of_all_formats_count_and_what_is_left_out_is_said(
    answerer: tuple[object, ...], digits: Path, tmp_path: Path
) -> None:
    for number, file in enumerate(sorted(digits.glob("3/*.png"))[:4]):
        folder = tmp_path / "set" / "3"
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert("RGB").save(folder / f"{number}{('.jfif', '.jpe', '.apng', '.png')[number]}")
    (folder / "3.json").write_text("{}")
    ended = command("evaluate", tmp_path / "set", *answerer, "--format", "json")
    assert (ended.returncode, json.loads(ended.stdout)["images"]) == (0, 4)
    assert json.loads(ended.stdout)["left_out"] == {"others": {}, "companions": {".json": 1}, "hidden": 0}

    (folder / "other.jxl").write_bytes(b"")
    ended = command("evaluate", tmp_path / "set", *answerer)
    assert ended.returncode == 1
    said = "1 by their names (.jxl 1), 1 that belong to images (.json 1)"
    assert f"dat-serve: left out of the files in folders: {said}\n" in ended.stderr
    assert f"left out  {said}\n" in ended.stdout
    ended = command("classify", tmp_path / "set", *answerer)
    assert (ended.returncode, len(lines_of(ended)), said in ended.stderr) == (1, 4, True)
    ended = command("features", tmp_path / "set", "--out", tmp_path / "f.npz", *answerer)
    assert (ended.returncode, said in ended.stderr) == (1, True)

    truth = tmp_path / "truth.csv"
    truth.write_text("0.jfif,3\n3.png,3\n")
    (folder / "other.jxl").unlink()
    ended = command("evaluate", tmp_path / "set", "--ground-truth", truth, *answerer, "--format", "json")
    assert (ended.returncode, json.loads(ended.stdout)["unlisted_images"]) == (1, 2)
    assert "2 images of the folder are not in the ground truth" in ended.stderr


def lines_of(ended: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_classify_answers_for_every_file_in_order(answerer: tuple[object, ...], digits: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    given = [tmp_path / "broken.png", digits / "3", f"{digits}/4/*1.png", tmp_path / "missing.png"]
    ended = command("classify", *given, *answerer, "--top-k", 2)
    assert ended.returncode == 1
    missing, broken, *others = lines_of(ended)
    assert (missing["error"]["code"], broken["error"]["code"]) == ("not_found", "unsupported_format")
    files = [*sorted((digits / "3").iterdir()), *sorted((digits / "4").glob("*1.png"))]
    assert [line["path"] for line in others] == list(map(str, files))
    for line in others:
        first, second = line["predictions"]
        assert first["score"] >= second["score"]
    right = sum(line["predictions"][0]["label"] == Path(line["path"]).parent.name for line in others)
    assert right == len(others)


def test_classify_as_a_table_is_for_people(answerer: tuple[object, ...], digits: Path) -> None:
    file = min((digits / "7").iterdir())
    ended = command("classify", file, *answerer, "--format", "table", "--top-k", 1)
    assert ended.returncode == 0
    header, row = ended.stdout.splitlines()
    assert header.split() == ["image", "score", "class"]
    assert row.split()[0] == str(file)
    assert row.split()[2] == "7"


def test_features_are_the_models_with_a_row_for_each_usable_image(
    answerer: tuple[object, ...], digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = tmp_path / "features.npz"
    given = (digits / "1", tmp_path / "broken.png", digits / "2")
    ended = command("features", *given, "--out", out, "--outputs", "embedding,logits,stage4", *answerer)
    assert ended.returncode == 1
    assert "broken.png: unsupported_format" in ended.stderr
    with np.load(out, allow_pickle=False) as arrays:
        labels = [Path(path).parent.name for path in arrays["path"]]
        assert labels == ["1"] * 37 + ["2"] * 35
        assert arrays["logits"].argmax(axis=1).tolist() == [int(label) for label in labels]
        assert arrays["embedding"].shape == (72, 128)
        assert arrays["stage4"].shape == (72, 128, 2, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "features.npz"]


def test_a_server_and_a_process_say_the_same_to_the_last_bit(exported: ExportOnce, digits: Path) -> None:
    demo = exported("dat_demo")
    with service_process(demo, "--threads", "1", "--api-keys", entry_of("secret")) as process:
        url = f"http://127.0.0.1:{process.port}"
        refused = command("classify", digits, "--url", url)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "401" in refused.stderr
        remote = command("classify", digits, "--url", url, key="secret")
    local = command("classify", digits, "--repository", demo, "--threads", 1)
    assert (remote.returncode, local.returncode) == (0, 0), remote.stderr + local.stderr
    assert len(lines_of(local)) == IMAGES
    assert remote.stdout == local.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (("classify", "x.png", "--url", "http://127.0.0.1:1", "--device", "cpu"), 2, "--device: the server"),
        (("classify", "x.png", "--concurrency", "0"), 2, "0 is not above 0"),
        (("classify", "README.md", "--url", "http://127.0.0.1:1"), 1, "cannot be reached"),
        (("features", "x.png", "--out", "no/folder/x.npz"), 2, "no folder no/folder"),
        (("evaluate", "no-folder"), 2, "no folder no-folder"),
        (("evaluate", "docs", "--numbers", "class-id"), 2, "are about a --ground-truth"),
        (("classify",), 2, "PATH"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_what_cannot_be_done_is_named(
    arguments: tuple[str, ...], status: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert reason in printed.err


def status_of(*arguments: str) -> object:
    """Run a command in this process, and return its exit status."""
    try:
        return main(list(arguments))
    except SystemExit as ended:  # argparse's
        return ended.code


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(name, "--help") == 0
    assert f"python -m service {name}" in capsys.readouterr().out
    assert status_of("--help") == 0
    assert name in capsys.readouterr().out


def test_an_interrupt_ends_with_what_is_done(model: ModelDirectory, tmp_path: Path) -> None:
    """The server holds the third image back: the client asks for it when it has taken the first one's answer."""
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(photo(seed=number))
    out = tmp_path / "features.npz"
    with service_thread(model) as threaded:
        session, run, held = threaded.session, threaded.session.run, threading.Event()
        session.sizes.clear()

        def run_two(*arguments: Any) -> Any:
            if sum(session.sizes) >= 2:
                session.gate.clear()
                held.set()
            return run(*arguments)

        session.run = run_two  # type: ignore[method-assign]
        url = f"http://127.0.0.1:{threaded.port}"
        client = subprocess.Popen(
            [sys.executable, "-m", "service", "features", tmp_path, "--out", out, "--concurrency", "2", "--url", url],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert held.wait(PATIENCE_S)
            client.send_signal(signal.SIGINT)
            _, stderr = client.communicate(timeout=PATIENCE_S)
        finally:
            client.kill()
            client.wait()
    assert client.returncode == 130, stderr
    assert "Traceback" not in stderr
    with np.load(out) as arrays:
        done = len(arrays["path"])
        assert arrays["path"].tolist() == [str(tmp_path / f"{number:02}.png") for number in range(done)]
    assert 1 <= done <= 2
    assert f"features of {done} of 40 images" in stderr


def test_only_what_a_command_needs_is_imported() -> None:
    probe = (
        "import sys; from service import commands\n"
        "for name in sys.argv[1:]:\n"
        "    commands.load(name)\n"
        "    print(*sorted({'httpx', 'rich', 'fastapi', 'uvicorn', 'onnxruntime'} & sys.modules.keys()))"
    )
    names = ("classify", "features", "evaluate", "settings", "serve")
    ended = subprocess.run([sys.executable, "-c", probe, *names], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["", "", "", "", "fastapi onnxruntime uvicorn"]


def test_classify_names_only_the_classes_and_scores_asked_for(answerer: tuple[object, ...], digits: Path) -> None:
    given = [digits / "3", *answerer, "--top-k", 10]
    everything = lines_of(command("classify", *given))
    chosen = lines_of(command("classify", *given, "--classes", "8,3", "--classes", "1", "--min-score", "0.02"))
    assert [line["path"] for line in chosen] == [line["path"] for line in everything]
    for line, full in zip(chosen, everything, strict=True):
        assert line["predictions"] == [
            each for each in full["predictions"] if each["class_id"] in (1, 3, 8) and each["score"] >= 0.02
        ]
    ended = command("classify", *given, "--classes", "3,ten")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--classes: 'ten' is no class of this model" in ended.stderr


def test_calibrate_shows_what_a_temperature_would_change(answerer: tuple[object, ...], digits: Path) -> None:
    ended = command("calibrate", digits, *answerer, "--json", "--held-out", "0.4")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["model"]["version"], report["temperature_before"], report["written"]) == (1, None, None)
    assert (report["fitted"]["before"]["images"], report["held_out"]["before"]["images"]) == (216, 144)
    for part in ("fitted", "held_out"):
        before, after = report[part]["before"], report[part]["after"]
        assert before["accuracy"] == after["accuracy"]
        assert (after["nll"] < before["nll"], after["ece"] < before["ece"]) == (True, True)
        assert sum(each["images"] for each in after["bins"]) == after["images"]


def test_a_temperature_that_is_written_is_a_version_that_a_server_loads(
    digits: Path, exported: ExportOnce, tmp_path: Path
) -> None:
    shutil.copytree(exported("dat_demo"), tmp_path / "models")
    source = ("--repository", tmp_path / "models", "--threads", 1)
    ended = command("calibrate", digits, *source, "--write")
    assert ended.returncode == 0, ended.stderr
    assert f"written: {tmp_path / 'models' / 'dat_demo' / '2'}\n" in ended.stdout
    image = min((digits / "3").iterdir()).read_bytes()
    options = ("--threads", "1", "--model", "dat_demo:1,dat_demo:2")

    def answers(client: httpx.Client, query: str) -> list[dict[str, Any]]:
        """The results of both versions for the image."""
        asked = [f"{query}&model=dat_demo:{version}" for version in (1, 2)]
        raw = {"Content-Type": "image/png"}
        return [client.post(each, content=image, headers=raw).json()["results"][0] for each in asked]

    with (
        service_process(tmp_path / "models", *options) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{process.port}", timeout=PATIENCE_S) as client,
    ):
        before, after = answers(client, "/v1/classify?top_k=10")
        old, new = answers(client, "/v1/features?outputs=logits")
        details = client.get("/v1/models/dat_demo").json()
    assert details["version"] == 2
    assert old["features"] == new["features"]
    assert [each["class_id"] for each in before["predictions"]] == [each["class_id"] for each in after["predictions"]]
    expected = softmax(np.array(old["features"]["logits"], np.float32), details["temperature"])
    assert [each["score"] for each in after["predictions"]] == sorted(expected.tolist(), reverse=True)
    assert before["predictions"][0]["score"] < after["predictions"][0]["score"]

    again = json.loads(command("calibrate", digits, *source, "--json").stdout)
    assert (again["model"]["version"], again["temperature_before"]) == (2, details["temperature"])
    assert again["temperature"] == pytest.approx(details["temperature"], rel=1e-3)


def test_calibrate_writes_nothing_through_a_server_or_for_images_that_tell_nothing(
    digits: Path, exported: ExportOnce, tmp_path: Path
) -> None:
    ended = command("calibrate", digits, "--url", "http://127.0.0.1:1", "--write")
    assert (ended.returncode, "--url asks a server" in ended.stderr) == (2, True)
    folder = tmp_path / "few" / "3"
    folder.mkdir(parents=True)
    for file in sorted((digits / "3").iterdir())[:4]:
        shutil.copy(file, folder)
    shutil.copytree(exported("dat_demo"), tmp_path / "models")
    ended = command("calibrate", folder.parent, "--repository", tmp_path / "models", "--threads", 1, "--write")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "nearly all of these images are right" in ended.stderr
    assert [path.name for path in (tmp_path / "models" / "dat_demo").iterdir()] == ["1"]
