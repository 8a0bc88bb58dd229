"""Docker, Podman and buildah as far as the test needs them: build, describe, save, run."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PORT = 8000
"""That the image's service listens on."""


@dataclass(frozen=True)
class ImageConfig:
    """What an image says of how it is run."""

    user: str
    workdir: str
    entrypoint: Sequence[str]
    healthcheck: Sequence[str]
    """As Docker has it: its form, `CMD` or `CMD-SHELL`, and the command."""
    stop_signal: str
    environment: Sequence[str]
    labels: Mapping[str, str]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ImageConfig:
        """Return what Docker's own form of a configuration says."""
        return cls(
            user=config.get("User", ""),
            workdir=config.get("WorkingDir") or "/",
            entrypoint=config.get("Entrypoint") or (),
            healthcheck=(config.get("Healthcheck") or {}).get("Test") or (),
            stop_signal=config.get("StopSignal") or "",
            environment=config.get("Env") or (),
            labels=config.get("Labels") or {},
        )


class Container(Protocol):
    """A container whose first process is attached: its stderr can be read, and its end awaited."""

    process: subprocess.Popen[str]
    port: int
    """Port of the loopback address at which the service answers once it listens."""

    def find_port(self) -> None:
        """Learn the port; it may be asked once the service listens."""

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run another command in it, as its user."""

    def terminate(self) -> None:
        """Send its first process SIGTERM."""


class Engine(Protocol):
    """What builds images and runs them."""

    def build(self, *, target: str, tag: str, options: Sequence[str]) -> None:
        """Build a target of the Dockerfile in the working directory."""

    def config(self, tag: str) -> ImageConfig:
        """Return the image's configuration."""

    def save(self, tag: str, archive: Path) -> None:
        """Write the image as an archive."""

    def run(
        self, tag: str, *, command: Sequence[str] | None, environment: Sequence[str], options: Sequence[str]
    ) -> contextlib.AbstractContextManager[Container]:
        """Start a container of it, with a read-only root and no capabilities: its own entry point, or a command."""


def engine_for(command: str) -> Engine:
    """Return the engine that a command line starts with: `docker`, `podman`, `buildah --root /var/tmp/images`."""
    words = shlex.split(command)
    kind = Path(words[0]).name
    if kind == "buildah":
        return _Buildah(words)
    return _Docker(words, build_options=("--format", "docker") if kind == "podman" else ())


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()  # noqa: S603


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no process behind."""
    with process:
        try:
            yield
        finally:
            if process.poll() is None:
                process.kill()


class _DockerContainer:
    def __init__(self, engine: Sequence[str], name: str, process: subprocess.Popen[str]) -> None:
        self._engine, self._name, self.process, self.port = engine, name, process, 0

    def find_port(self) -> None:
        self.port = int(_output([*self._engine, "port", self._name, f"{PORT}/tcp"]).rpartition(":")[2])

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603
            [*self._engine, "exec", self._name, *command], capture_output=True, text=True, check=False
        )

    def terminate(self) -> None:
        _output([*self._engine, "kill", "--signal", "TERM", self._name])


class _Docker:
    def __init__(self, engine: Sequence[str], *, build_options: Sequence[str]) -> None:
        self._engine, self._build_options = engine, build_options

    def build(self, *, target: str, tag: str, options: Sequence[str]) -> None:
        command = [*self._engine, "build", *self._build_options, "--target", target, "--tag", tag, *options, "."]
        subprocess.run(command, check=True)  # noqa: S603

    def config(self, tag: str) -> ImageConfig:
        (image,) = json.loads(_output([*self._engine, "image", "inspect", tag]))
        beside = {"Healthcheck": image["Healthcheck"]} if "Healthcheck" in image else {}  # where Podman has it
        return ImageConfig.of({**image["Config"], **beside})

    def save(self, tag: str, archive: Path) -> None:
        _output([*self._engine, "save", "--output", str(archive), tag])

    @contextlib.contextmanager
    def run(
        self, tag: str, *, command: Sequence[str] | None, environment: Sequence[str], options: Sequence[str]
    ) -> Iterator[Container]:
        name = f"image-test-{uuid.uuid4().hex[:12]}"
        confined = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp")  # noqa: S108
        variables = [word for variable in environment for word in ("--env", variable)]
        instead = ["--entrypoint", command[0]] if command else []
        rest = list(command[1:]) if command else []
        process = _start(
            [*self._engine, "run", "--rm", "--name", name, *confined, "--publish", f"127.0.0.1::{PORT}",
             *variables, *options, *instead, tag, *rest]
        )  # fmt: skip
        with _ended(process):
            try:
                yield _DockerContainer(self._engine, name, process)
            finally:
                if process.poll() is None:
                    _output([*self._engine, "kill", name])


class _UnpackedContainer:
    """A container by `deploy.image_test.unpacked`; its network is the machine's, so its port is a free one."""

    def __init__(self, root: Path, config: ImageConfig, *, command: Sequence[str], environment: Sequence[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        variables = [*config.environment, f"DAT_PORT={self.port}", *environment]
        self._start = [
            sys.executable, "-m", "deploy.image_test.unpacked", str(root), "--user", config.user or "0:0",
            "--workdir", config.workdir, *(f"--env={variable}" for variable in variables), "--",
        ]  # fmt: skip
        self.process = _start([*self._start, *command])

    def find_port(self) -> None:
        """Nothing to learn: the port was given."""

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._start, *command], capture_output=True, text=True, check=False)  # noqa: S603

    def terminate(self) -> None:
        self.process.terminate()


class _Buildah:
    def __init__(self, engine: Sequence[str]) -> None:
        self._engine = engine

    def build(self, *, target: str, tag: str, options: Sequence[str]) -> None:
        command = [*self._engine, "build", "--format", "docker", "--layers", "--target", target, "--tag", tag]
        subprocess.run([*command, *options, "."], check=True)  # noqa: S603

    def config(self, tag: str) -> ImageConfig:
        described = json.loads(_output([*self._engine, "inspect", "--type", "image", tag]))
        return ImageConfig.of(described["Docker"]["config"])

    def save(self, tag: str, archive: Path) -> None:
        _output([*self._engine, "push", "--quiet", tag, f"docker-archive:{archive}"])

    @contextlib.contextmanager
    def run(
        self, tag: str, *, command: Sequence[str] | None, environment: Sequence[str], options: Sequence[str]
    ) -> Iterator[Container]:
        if options:
            raise SystemExit(f"buildah runs no containers, so that {' '.join(options)} cannot be given to one")
        if os.geteuid() != 0:
            raise SystemExit("an image that buildah has built is run by changing root, which only root can")
        config = self.config(tag)
        name = _output([*self._engine, "from", tag])
        try:
            root = Path(_output([*self._engine, "mount", name]))
            container = _UnpackedContainer(root, config, command=command or config.entrypoint, environment=environment)
            with _ended(container.process):
                yield container
        finally:
            _output([*self._engine, "umount", name])
            _output([*self._engine, "rm", name])
