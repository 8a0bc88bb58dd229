"""The messages between the supervisor and its processes, over one socket for each process.

Messages are whole (SOCK_SEQPACKET) and may carry descriptors. They are pickled: both ends are the same program, and
nobody else can reach the socket. To whoever holds one end, the end of the socket means that the other process is gone.
"""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_MOST_BYTES = 1 << 18
_MOST_INLINE_BYTES = 1 << 15
"""Longer messages, such as plans with the names of thousands of classes, lie in memory beside the socket."""
_ASIDE = b"aside"
"""Stands for a message whose descriptor comes first; no pickle begins so."""
_MOST_DESCRIPTORS = 8


@dataclass(frozen=True, slots=True)
class Start:
    """To a new process: what to call, as `target(control, descriptors, *arguments)`; it returns the exit status."""

    target: Callable[..., int]
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Be ready to serve a version of a model, which both ends call by its `serial`; `plan` says all about it.

    To an engine process it carries the version's board; to a worker that, and the memory of the worker's slots.
    """

    serial: int
    plan: Any


@dataclass(frozen=True, slots=True)
class Loaded:
    """From an engine process: a version takes work there; `facts` is what its load has shown."""

    serial: int
    facts: Any


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """From an engine process: a version cannot be served there, for a reason that is fit for the operator."""

    serial: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Attach:
    """A link between a worker and an engine of a version: the other's number.

    To an engine process it carries the link's socket and the worker's memory, to a worker the socket alone.
    """

    serial: int
    number: int


@dataclass(frozen=True, slots=True)
class Unload:
    """To either: let go of a version, when nothing of it is in flight; answered by Unloaded."""

    serial: int


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The answer to Unload: its memory is given back."""

    serial: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answered by Pong at once."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to Ping."""


@dataclass(frozen=True, slots=True)
class Ready:
    """To the supervisor: the process does what it is for."""


@dataclass(frozen=True, slots=True)
class End:
    """Finish what is in flight, and end."""


class ControlSocket:
    """One end of a pair."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[ControlSocket, ControlSocket]:
        """Return two connected ends, neither of which is inherited by a new process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> bool:
        """Send a message with copies of descriptors; never waits. Returns false where the other end takes no more.

        It takes no more when it is gone, or has not read for long; nor does one that was closed here.
        """
        if self._socket.fileno() < 0:
            return False
        data = pickle.dumps(message)
        with contextlib.ExitStack() as kept:
            if len(data) > _MOST_INLINE_BYTES:
                aside = kept.enter_context(os.fdopen(os.memfd_create("dat-serve-message", os.MFD_CLOEXEC), "r+b"))
                aside.write(data)
                aside.flush()
                data, descriptors = _ASIDE, [aside.fileno(), *descriptors]
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                self._socket.sendmsg([data], rights, socket.MSG_DONTWAIT)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                return False
        return True

    def receive(self) -> tuple[object, list[int]] | None:
        """Wait for a message and return it with its descriptors, which are now the caller's; None at the end."""
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._socket, _MOST_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError:  # said once, before the last messages of an end that went with some unread
                continue
            if not data:
                return None
            if data == _ASIDE:
                with os.fdopen(descriptors.pop(0), "rb") as aside:
                    aside.seek(0)
                    data = aside.read()
            return pickle.loads(data), descriptors  # noqa: S301  # from our own process

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
