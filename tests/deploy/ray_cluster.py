"""A Ray cluster of several nodes on this machine, with the service on it; run in Ray's environment, led by its input.

    python -m tests.deploy.ray_cluster REPOSITORY

The head node has Ray's controller and proxy and no replica; each of the two others has room for several, and Ray
spreads them. Every line of the input is `COMMAND [ARGUMENTS]`, and is answered on the output by one line of JSON. At
the input's end the cluster is shut down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from deploy.ray_options import deployment_options, read_arguments
from deploy.ray_serve import Replica, build

OBJECT_STORE_BYTES = 100 * 1024 * 1024
CORES = 4
"""What each node says that it has; replicas of one core are placed by it, and run on what there is."""
NOTICE_DEATH = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
"""A node that is silent for 1.5 s is dead; Ray's own figures make it 15 s and more."""
REQUEST_TIMEOUT_S = 35


class Breakable(Replica):
    """A replica whose engine can be ended, or made to hang."""

    async def break_engine(self) -> None:
        await self._service.models.resolve().engine.stop(0)

    async def hang_engine(self) -> None:
        engine: Any = self._service.models.resolve().engine
        engine._thread.send(lambda _: threading.Event().wait())
        engine._engine.busy_since_s = time.monotonic() - 3600  # as in a step that began an hour ago
        engine._look()


class RayCluster:
    """The cluster, and what the test may ask of it."""

    def __init__(self, repository: str) -> None:
        self._repository = repository
        self._lost: list[int] = []
        head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": NOTICE_DEATH})
        self._nodes: list[Any] = []
        self.add_node()
        self.add_node()
        ray.init(address=self._cluster.address, log_to_driver=False)
        self._port = _free_port()
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": self._port, "request_timeout_s": REQUEST_TIMEOUT_S},
        )

    def deploy(self, name: str, arguments: str) -> int:
        """Deploy the service with these arguments, as JSON, at `/` for "main" and else at its name; return the port."""
        chosen = {"repository": self._repository, **json.loads(arguments)}
        serve.run(build(chosen), name=name, route_prefix="/" if name == "main" else f"/{name}")
        return self._port

    def deploy_in_vain(self, name: str, arguments: str) -> str:
        """Deploy with arguments that replicas cannot start with; return what Ray says of it."""
        try:
            self.deploy(name, arguments)
        except RuntimeError:
            return str(serve.status().applications[name].deployments["dat"].message)
        finally:
            serve.delete(name)
        raise AssertionError("the application has been deployed")

    def deploy_breakable(self, name: str) -> int:
        """Deploy the service so that its engine can be ended, or made to hang."""
        placement, settings = read_arguments({"repository": self._repository})
        deployment = serve.deployment(**deployment_options(placement, settings))(serve.ingress()(Breakable))
        serve.run(deployment.bind(settings), name=name, route_prefix=f"/{name}")
        return self._port

    def break_engine(self, name: str) -> None:
        """End the engine of a replica."""
        serve.get_app_handle(name).break_engine.remote().result(timeout_s=30)

    def hang_engine(self, name: str) -> None:
        """Have the engine of a replica hang, as its watchdog finds it."""
        serve.get_app_handle(name).hang_engine.remote().result(timeout_s=30)

    def delete(self, name: str) -> None:
        """Begin to end an application."""
        serve.delete(name, _blocking=False)

    def add_node(self) -> None:
        """Add a node with room for replicas."""
        self._nodes.append(self._cluster.add_node(num_cpus=CORES, object_store_memory=OBJECT_STORE_BYTES))

    def lose_node(self, how: str) -> int:
        """Send a signal to every process of a node with a replica of "main"; return how many there were.

        With SIGKILL it is a machine that crashed, whose connections break, and with SIGSTOP one that is silent.
        """
        actors = ray._private.state.actors().values()
        with_replicas = {
            actor["Address"]["NodeID"]
            for actor in actors
            if actor["State"] == "ALIVE" and actor["Name"].startswith("SERVE_REPLICA::main#")
        }
        node = next(node for node in self._nodes if node.node_id in with_replicas)
        self._nodes.remove(node)
        raylet = node.all_processes["raylet"][0].process.pid
        processes = [raylet, *_descendants(raylet)]
        for pid in processes:
            os.kill(pid, signal.Signals[how])
        self._lost += processes
        return len(processes)

    def end(self) -> None:
        """End everything."""
        for pid in self._lost:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _descendants(pid: int) -> list[int]:
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [each for child in children for each in (child, *_descendants(child))]


def main() -> None:
    """Obey until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where Ray, too, prints what it likes

    def tell(answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    cluster = RayCluster(sys.argv[1])
    try:
        tell("up")
        for line in sys.stdin:
            command, *arguments = line.rstrip("\n").split(" ", 2)
            tell(getattr(cluster, command)(*arguments))
    finally:
        cluster.end()


if __name__ == "__main__":
    main()
