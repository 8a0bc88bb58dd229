"""A new process of this service: started as `python -m service.processes.child`, with a control socket to it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping

from service.engine.control import ControlSocket


async def spawn(environment: Mapping[str, str] | None = None) -> tuple[asyncio.subprocess.Process, ControlSocket]:
    """Return a process that waits for its `Start`, and our end of its control socket.

    `environment` comes on top of this process's own.
    """
    ours, theirs = ControlSocket.pair()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service.processes.child", str(theirs.fileno()), str(os.getpid()),
            stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


def how_it_ended(status: int) -> str:
    """Return half a sentence on a process's exit status."""
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
