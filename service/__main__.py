"""The command line: `python -m service [COMMAND] [options]`.

Exit status: 0 after an orderly end, 1 where a command cannot do what it was asked, or not for every file, 2 for a bad
option or setting, 3 where `drift` finds drift and is to fail for it, 130 after Ctrl-C; where a service of several
processes is ended by a second signal, 128 and the signal's number.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from service import VERSION, commands
from service.errors import SettingsError, StartupError

_PROGRAM = "python -m service"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    name, rest = _choose(list(sys.argv[1:] if arguments is None else arguments))
    command = commands.load(name)
    summary = commands.COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"{_PROGRAM} {name}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="Every setting is also a variable: --max-images, DAT_MAX_IMAGES.",
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args(rest))
    except SettingsError as error:
        print(f"dat-serve: {error}", file=sys.stderr)
        return 2
    except StartupError as error:
        print(f"dat-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _choose(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the command's name and its arguments; prints help, or what is wrong, and exits where there is none."""
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
    elif arguments[:1] in (["-h"], ["--help"], ["--version"]):
        name, rest = "", arguments
    else:
        name, rest = commands.DEFAULT, arguments
    if name in commands.COMMANDS:
        return name, rest
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Serve a model directory over HTTP, or ask a model from the command line.",
        epilog=f"`{_PROGRAM} COMMAND --help` shows a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"dat-serve {VERSION}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for each, summary in commands.COMMANDS.items():
        choices.add_parser(each, help=summary)
    parser.parse_args([name, *rest] if name else rest)
    raise AssertionError("argparse exits for help, the version, and what it does not know")


if __name__ == "__main__":
    sys.exit(main())
