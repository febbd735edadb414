"""``arl2``: the outermost shell. A mistake of the user is a sentence and exit code 2, Ctrl-C a line and 130.

What takes time to import is imported inside, so that Ctrl-C is caught from the first moment on.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

_BUG = "this is a bug in arl2. Please report it with the lines below and with what 'arl2 env' prints."
_NO_MEMORY = (
    "this took more memory than there is. Take fewer or smaller videos at once, fewer candidates, or half precision "
    "(--dtype bf16)."
)

_MOST_TOLD = 1000  # messages that are remembered


def main(argv: Sequence[str] | None = None, *, alone: bool = False) -> int:
    """Run a command; the exit code is 0 (done), 1 (a check failed), 2 (wrong input) or 130 (interrupted).

    What nobody foresaw is raised, after a line that says how to report it.

    Args:
        argv: the words after ``arl2``; None: those of the process.
        alone: the process does nothing else, so that a command that needs little of diffusers need not import it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = "arl2"
    try:
        from arl2.cli.standard_streams import lasting_streams, say_error
        from arl2.cli.threads import sleep_while_waiting

        sleep_while_waiting()

        with lasting_streams():
            from arl2.bases.choice import prefer_own
            from arl2.cli import miniature
            from arl2.cli.app import command_of, parse
            from arl2.cli.collector import without_collector
            from arl2.errors import Arl2Error, is_out_of_memory

            words, verbose = _without_verbose(words)
            name = f"arl2 {command_of(words)}".rstrip()
            try:
                command = parse(["env"] if verbose and words == ["--version"] else words)
                if command is None:
                    return 0
                _log(verbose)
                if miniature.asked():
                    say_error(f"{name}: in miniature, as the environment variable {miniature.VARIABLE} says")
                    command = miniature.miniature(command)
                if not (command.light and alone):
                    return command.run()
                prefer_own()
                with without_collector():
                    return command.run()
            except Arl2Error as error:
                say_error(f"{name}: {error}")
                return 2
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of a library in Rust is no Exception
                if is_out_of_memory(error):
                    say_error(f"{name}: {_NO_MEMORY}")
                    return 2
                say_error(f"{name}: {_BUG}")
                raise
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _without_verbose(words: list[str]) -> tuple[list[str], bool]:
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word not in ("-v", "--verbose")]
    return [*kept, *words[end:]], len(kept) < end


def _log(verbose: bool) -> None:
    import logging
    import warnings

    level = logging.INFO if verbose else logging.WARNING
    told: set[str] = set()

    def first_time(record: logging.LogRecord) -> bool:
        # What is checked before the work is checked again at its beginning.
        said = record.getMessage()
        known = record.levelno >= logging.WARNING and said in told
        if len(told) < _MOST_TOLD:
            told.add(said)
        return not known

    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(first_time)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if verbose else "arl2: warning: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    # A person reads the sentence; the line of our code that warned says nothing to them.
    warnings.formatwarning = lambda message, *_, **__: f"arl2: warning: {message}\n"


def script() -> NoReturn:
    """The console script: ``main``, and the end of the process."""
    from arl2.cli.collector import leave_to_the_system

    code = main(alone=True)
    leave_to_the_system()
    sys.exit(code)


if __name__ == "__main__":
    script()
