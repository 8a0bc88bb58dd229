"""The path below which a reverse proxy serves the service, as ASGI has it.

Some proxies take their prefix off before they pass a request on, others do not, and probes on the same machine ask
without it. Here all of these become one: `scope["root_path"]` is the prefix, and `scope["path"]` the whole path, prefix
included, as uvicorn and the framework understand it. An ASGI server that mounts the service itself, as Ray does, says
its prefix in the scope; a prefix from the settings takes its place.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


def path_below_root(scope: Scope) -> str:
    """Return a request's path without the prefix, whether or not the server has left it there."""
    return below(scope["path"], scope.get("root_path", ""))


def below(path: str, root_path: str) -> str:
    """Return a path without `root_path`, where it begins with that."""
    rest = path.removeprefix(root_path)
    return rest if rest == "" or rest.startswith("/") else path


class RootPath:
    """Serves an application below `root_path`, which begins with a slash and does not end with one."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its prefix."""
        if scope["type"] == "http":
            path = below(path_below_root(scope), self._root_path)
            scope = {**scope, "root_path": self._root_path, "path": self._root_path + path}
        await self._app(scope, receive, send)
