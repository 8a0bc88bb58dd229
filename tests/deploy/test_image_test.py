"""The image test itself: that it measures what is there, and that it sees what is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.image_test.__main__ import CheckFailed, check_config, check_service, check_size, drawn_one
from deploy.image_test.engines import Container, ImageConfig, engine_for
from deploy.image_test.sizes import read_layers, report
from tests.service.conftest import model as model
from tests.service.conftest import repository as repository

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
SERVICE = [sys.executable, "-m", "service"]
GOOD = ImageConfig(
    user="10001:10001",
    workdir="/app",
    entrypoint=["python", "-m", "service"],
    healthcheck=["CMD", *SERVICE, "health"],
    stop_signal="SIGTERM",
    environment=["PATH=/usr/bin:/bin"],
    labels={"org.opencontainers.image.version": "1"},
)


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An image of two layers, as `docker save` writes it."""
    history = [{"created_by": "base"}, {"created_by": "ENV A=1", "empty_layer": True}, {"created_by": "COPY /opt"}]
    site = "opt/serve/lib/python3.11/site-packages"
    content = {
        "manifest.json": json.dumps([{"Config": "c.json", "Layers": ["a.tar", "b.tar"]}]).encode(),
        "c.json": json.dumps({"history": history}).encode(),
        "a.tar": packed({"usr/bin/python": bytes(300), "etc/passwd": bytes(20)}),
        "b.tar": packed(
            {
                f"{site}/nvidia/cudnn/lib/libcudnn.so": bytes(2_000_000),
                f"{site}/numpy/core/a.so": bytes(1000),
                f"{site}/numpy/b.py": bytes(10),
                f"{site}/typing_extensions.py": bytes(7),
            }
        ),
    }
    path = tmp_path / "image.tar"
    path.write_bytes(packed(content))
    return path


class SavedImage:
    """An engine that has one image, in an archive, and runs none."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive

    def save(self, tag: str, archive: Path) -> None:
        archive.write_bytes(self._archive.read_bytes())


class OwnService:
    """An engine whose containers are this checkout's service, or another program in its place."""

    def __init__(self, repository: Path, program: Sequence[str] = SERVICE) -> None:
        self._repository, self._program = repository, program

    @contextlib.contextmanager
    def run(
        self, tag: str, *, command: Sequence[str] | None, environment: Sequence[str], options: Sequence[str]
    ) -> Iterator[Container]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        given = dict(variable.split("=", 1) for variable in environment)
        own = {"DAT_PORT": str(port), "DAT_REPOSITORY": str(self._repository), "DAT_LOG_FORMAT": "json"}
        variables = {**os.environ, **own, **given}

        class Local:
            process = subprocess.Popen(
                self._program, cwd=ROOT, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )

            def find_port(self) -> None:
                self.port = port

            def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
                return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)

            def terminate(self) -> None:
                self.process.terminate()

        local = Local()
        with local.process:
            try:
                yield local
            finally:
                local.process.kill()


def service_checked(engine: OwnService, config: ImageConfig = GOOD) -> str:
    return check_service(engine, "", config, environment=(), run_options=())  # type: ignore[arg-type]


def test_sizes_are_told_by_layer_and_by_package(archive: Path) -> None:
    base, packages = read_layers(archive)
    assert (base.made_by, base.directories) == ("base", {"/usr/bin": 300, "/etc": 20})
    assert packages.made_by == "COPY /opt"
    assert packages.directories == {"nvidia/cudnn": 2_000_000, "numpy": 1010, "site-packages": 7}
    lines = list(report([base, packages]))
    assert lines[0].split(maxsplit=2) == ["2.0", "MB", "the image, unpacked"]
    assert [line.split()[-1] for line in lines if "nvidia" in line] == ["nvidia/cudnn"]


def test_image_that_is_too_large_fails(archive: Path) -> None:
    engine = SavedImage(archive)
    assert check_size(engine, "", limit_mb=2.1) == "2 MB unpacked, at most 2.1"  # type: ignore[arg-type]
    with pytest.raises(CheckFailed, match=r"\b2 MB .*\b1\.9"):
        check_size(engine, "", limit_mb=1.9)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"user": "root"}, "user .*'root'"),
        ({"user": ""}, "user .*''"),
        ({"user": "0:0"}, "user .*'0:0'"),
        ({"entrypoint": ["/bin/sh", "-c", "python -m service"]}, "entry point"),
        ({"entrypoint": []}, "entry point"),
        ({"healthcheck": ["CMD-SHELL", "curl localhost"]}, "health check"),
        ({"healthcheck": []}, "health check"),
        ({"stop_signal": ""}, "stopped .*''"),
        ({"labels": {}}, "label"),
    ],
)
def test_configuration_that_breaks_a_promise_fails(change: dict[str, object], says: str) -> None:
    assert check_config(GOOD) == "user 10001:10001, entry point python -m service, no shell"
    with pytest.raises(CheckFailed, match=says):
        check_config(replace(GOOD, **change))  # type: ignore[arg-type]


def test_configuration_is_read_in_dockers_form() -> None:
    described = {
        "User": "10001:10001",
        "WorkingDir": "/app",
        "Entrypoint": ["python", "-m", "service"],
        "Healthcheck": {"Test": ["CMD", *SERVICE, "health"], "Timeout": 5_000_000_000},
        "StopSignal": "SIGTERM",
        "Env": ["PATH=/usr/bin:/bin"],
        "Labels": {"org.opencontainers.image.version": "1"},
    }
    assert ImageConfig.of(described) == GOOD
    assert ImageConfig.of({"Labels": None}).entrypoint == ()


def test_the_image_that_the_service_is_asked_about_is_a_stroke() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(drawn_one())))
    assert pixels.shape == (64, 64)
    assert pixels[32, 32] == 255
    assert pixels[0, 32] == pixels[32, 0] == 0


def test_service_that_works_passes(repository: Path) -> None:
    said = service_checked(OwnService(repository))
    assert "is ready.'; SIGTERM ends it with status 0" in said


def test_service_that_cannot_start_fails_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=str(tmp_path)):
        service_checked(OwnService(tmp_path))


def test_health_check_that_fails_is_told(repository: Path) -> None:
    broken = replace(GOOD, healthcheck=["CMD", sys.executable, "-c", "raise SystemExit('no route')"])
    with pytest.raises(CheckFailed, match="1: no route"):
        service_checked(OwnService(repository), broken)


def test_service_that_does_not_hear_its_signal_fails(repository: Path) -> None:
    deaf = "import signal, sys; signal.signal = lambda *_: None; from service.__main__ import main; sys.exit(main([]))"
    with pytest.raises(CheckFailed, match=r"SIGTERM .*-15"):
        service_checked(OwnService(repository, [sys.executable, "-c", deaf]))


def confined(*command: str) -> subprocess.Popen[str]:
    unpacked = [sys.executable, "-m", "deploy.image_test.unpacked", "/", "--user", "65534:65534"]
    arguments = ["--workdir", "/usr", "--env=PATH=/usr/bin:/bin", "--env=ANSWER=42", "--", *command]
    return subprocess.Popen([*unpacked, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


namespaces = pytest.mark.skipif(
    os.geteuid() != 0
    or subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False).returncode
    != 0,
    reason="only root, and where namespaces may be made, can change root",
)


@namespaces
def test_unpacked_image_is_run_as_a_user_who_can_write_to_memory_alone() -> None:
    script = "id -u; pwd; echo $ANSWER $$; touch /tmp/a /dev/shm/b && ls /tmp; touch /x /var/tmp/x 2>&1; exit 3"
    with confined("sh", "-c", script) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    *seen, first, second = output.splitlines()
    assert seen == ["65534", "/usr", "42 1", "a"]
    assert "Read-only file system" in first
    assert "Read-only file system" in second
    assert process.returncode == 3


@namespaces
def test_signal_reaches_the_first_process_of_an_unpacked_image() -> None:
    with confined("sh", "-c", "trap 'echo ending; exit 0' TERM; echo waiting; sleep 600 & wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert (output, process.returncode) == ("ending\n", 0)


def test_buildah_is_told_from_dockers_like_by_its_name() -> None:
    assert type(engine_for("/usr/bin/buildah --root /x")) is not type(engine_for("docker"))
    assert type(engine_for("podman")) is type(engine_for("docker --context other"))
