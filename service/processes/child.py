"""Where each process of a service begins: `python -m service.processes.child DESCRIPTOR PARENT`, by the supervisor.

The process takes its first message from the control socket that it has inherited as DESCRIPTOR, and does what that
says. It leaves signals from terminals and service managers to the supervisor, and is killed when its parent is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

from service.engine.control import ControlSocket, Start

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Do what the first message says, and return the exit status."""
    descriptor, parent = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with(parent)
    os.set_inheritable(descriptor, False)
    control = ControlSocket(socket.socket(fileno=descriptor))
    received = control.receive()
    if received is None:
        return 1
    start, descriptors = received
    assert isinstance(start, Start)
    return start.target(control, descriptors, *start.arguments)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, even while it is stopped or hangs."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
