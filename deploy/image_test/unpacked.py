"""Run a command in an unpacked image as a container engine would: for building machines that have none.

    python -m deploy.image_test.unpacked ROOT --user 10001:10001 --workdir /app --env NAME=VALUE ... -- COMMAND...

The command is process 1 of its own process namespace, as the given user without capabilities or a way to gain any. It
sees ROOT read-only, with an empty /tmp and /dev/shm in memory, a /proc, and four devices; the network is the machine's.
SIGTERM and SIGINT are passed on to it, and its exit status is this program's. Linux, as root.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

_CLONE_NEWNS = 0x0002_0000
_CLONE_NEWPID = 0x2000_0000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_DEVICES = ("null", "zero", "random", "urandom")
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Run the command, and return its exit status, or 128 and the number of the signal that ended it."""
    options = _parse()
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID), "unshare")
    child = os.fork()
    if child == 0:
        _become_container(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os.kill(child, received))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a command in an unpacked image.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--user", default="0:0", help="UID:GID")
    parser.add_argument("--workdir", default="/")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def _become_container(options: argparse.Namespace) -> NoReturn:
    root: Path = options.root
    user, _, group = options.user.partition(":")
    _mount("--make-rprivate", "/")
    _mount("--bind", root, root)
    for place in ("tmp", "dev"):
        _mount("-t", "tmpfs", "-o", "mode=1777" if place == "tmp" else "mode=755", "tmpfs", root / place)
    for device in _DEVICES:
        (root / "dev" / device).touch()
        _mount("--bind", f"/dev/{device}", root / "dev" / device)
    (root / "dev/shm").mkdir()
    _mount("-t", "tmpfs", "-o", "mode=1777,size=64m", "tmpfs", root / "dev/shm")
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-o", "remount,bind,ro", root)
    os.chroot(root)
    os.chdir(options.workdir)
    os.setgroups([])
    os.setgid(int(group or user))
    os.setuid(int(user))  # gives up every capability, unless it is root's
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    environment = dict(item.split("=", 1) for item in options.env)
    os.environ["PATH"] = environment.get("PATH", os.defpath)  # where execvpe looks
    os.execvpe(options.command[0], options.command, environment)  # noqa: S606  # the command is the whole purpose


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)  # noqa: S603, S607  # arguments are our own


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
