"""`models`: what a running server serves, and loading, replacing and unloading models there.

`list` shows every version of every model with its state. `load` serves the versions that the model's version policy
wants, of those in the server's repository now, and returns when they take work; a version that cannot be served leaves
what was served as it was. `unload` returns when the model takes no more work.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from service.commands.source import api_key
from service.commands.terminal import printable, say
from service.errors import SettingsError, StartupError
from service.settings import CLIENT_API_KEY

if TYPE_CHECKING:
    import httpx

_CONNECT_TIMEOUT_S = 10.0
"""The answer itself takes as long as loading does, which may be minutes."""
_HEADER = ("model", "version", "state", "answers", "devices", "parity error", "reason")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("action", choices=("list", "load", "unload"), help="what to do")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; of list, all of them by default")
    parser.add_argument("--url", required=True, help="address of the running service")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help=f"file that holds the API key, of role admin to load and unload (default: ${CLIENT_API_KEY})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what the server says of each version as JSON")


def run(options: argparse.Namespace) -> int:
    """Do it, print how the models are then, and return 1 if any could not be listed, loaded or unloaded.

    Raises StartupError where the server cannot be asked.
    """
    if options.action != "list" and not options.names:
        raise SettingsError(f"{options.action}: name the models")
    with_version = [name for name in options.names if ":" in name]
    if with_version:
        raise SettingsError(
            f"{with_version[0]}: models are named without versions here; which are served is for the server's settings"
        )
    return asyncio.run(_run(options, api_key(options.api_key_file)))


async def _run(options: argparse.Namespace, key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> int:
    import httpx

    try:
        client = httpx.AsyncClient(
            base_url=options.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            transport=transport,
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise StartupError(f"{options.url!r} is not an address: {error}") from error
    names = tuple(dict.fromkeys(options.names))
    async with client:
        is_whole = True
        if options.action != "list":
            for name in names:
                is_whole &= await _ask_for(client, name, options.action)
        entries = await _list(client)
    known = {str(entry.get("name")) for entry in entries}
    for name in names:
        if name not in known:
            is_whole = False
            if options.action == "list":
                say(f"{printable(name)}: the server has no such model; it has {', '.join(sorted(known)) or 'none'}")
    shown = [entry for entry in entries if not names or entry.get("name") in names]
    print(json.dumps(shown, indent=2) if options.json else _table(shown))
    return 0 if is_whole else 1


async def _ask_for(client: httpx.AsyncClient, name: str, action: str) -> bool:
    """Have one model loaded or unloaded, and return whether it was; what the server says against it is said."""
    response = await _send(client, "POST", f"/v2/repository/models/{quote(name, safe='')}/{action}")
    if response.is_success:
        return True
    say(f"{printable(name)}: not {action}ed: {printable(_reason(response))}")
    return False


async def _list(client: httpx.AsyncClient) -> Sequence[Mapping[str, Any]]:
    """Return what the server says of every version; raises StartupError where it does not."""
    response = await _send(client, "GET", "/v1/models")
    if not response.is_success:
        raise StartupError(f"{response.url} answered {response.status_code}: {_reason(response)}")
    try:
        return list(response.json()["models"])
    except (ValueError, KeyError, TypeError) as error:
        raise StartupError(f"{response.url} did not list models: is this the service?") from error


async def _send(client: httpx.AsyncClient, method: str, path: str) -> httpx.Response:
    import httpx

    try:
        return await client.request(method, path)
    except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise StartupError(f"{client.base_url} cannot be reached: {reason}") from error


def _reason(response: httpx.Response) -> str:
    """Return what an answer says against a request: a problem document's detail, or the protocol's error."""
    try:
        document = response.json()
        return str(document.get("detail") or document["error"])
    except (ValueError, KeyError, AttributeError):
        return f"{response.status_code} {response.reason_phrase}"


def _table(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [_HEADER, *map(_row, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _devices(entry: Mapping[str, Any]) -> str:
    """Return what a version runs on, and where it runs another graph than the standard one there, which."""
    devices, graphs = entry.get("devices") or (), entry.get("graphs") or ()
    return ",".join(
        device if graph == "standard" else f"{device} ({graph})"
        for device, graph in itertools.zip_longest(devices, graphs, fillvalue="standard")
    )


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    parity = entry.get("parity")
    cells = (
        entry.get("name", ""),
        entry.get("version", ""),
        entry.get("state", ""),
        "by default" if entry.get("is_default") else "",
        _devices(entry),
        f"{parity['error']:.1e} of {parity['tolerance']:.0e}" if parity else "",
        entry.get("reason") or "",
    )
    return tuple(printable(str(cell)) for cell in cells)
