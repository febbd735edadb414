"""``arl2``: one sub-command a file. A mistake of the user is one sentence and exit code 2, never a traceback."""

import argparse
import logging
import sys
from collections.abc import Sequence

from arl2.cli import (
    convert,
    download,
    export,
    generate,
    inspect,
    models,
    rollouts,
    selfcheck,
    sensitivity,
    shapes,
    stream,
    train,
)
from arl2.cli.standard_streams import say_error
from arl2.errors import Arl2Error
from arl2.version import __version__

COMMANDS = (
    generate,
    stream,
    models,
    download,
    shapes,
    convert,
    rollouts,
    train,
    sensitivity,
    export,
    inspect,
    selfcheck,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; building it imports no torch."""
    parser = argparse.ArgumentParser(
        prog="arl2", description="Streaming video generation with constant memory: attend locally, remember linearly."
    )
    parser.add_argument("--version", action="version", version=f"arl2 {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say which backends are chosen, and why")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 (done), 1 (a check failed), 2 (wrong input) or 130 (interrupted)."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr
    )
    try:
        return int(arguments.run(arguments))
    except Arl2Error as error:
        say_error(f"arl2 {arguments.command}: {error}")
        return 2
    except KeyboardInterrupt:
        say_error(f"arl2 {arguments.command}: interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
