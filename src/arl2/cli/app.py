"""All commands, and what the words of a command line mean."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import ClassVar, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from arl2.cli.bench import (
    BenchBlock,
    BenchCompare,
    BenchDecode,
    BenchKernels,
    BenchRollout,
    BenchSnapshot,
    BenchStartup,
    BenchTrain,
)
from arl2.cli.compare import Compare
from arl2.cli.convert import Convert
from arl2.cli.download import Download
from arl2.cli.environment import Env
from arl2.cli.evaluation import Eval
from arl2.cli.export import Export
from arl2.cli.generate import Generate
from arl2.cli.inspect import Inspect
from arl2.cli.models import Models
from arl2.cli.options import Command, options_of, parser_of, several, summary
from arl2.cli.renamed import normalised
from arl2.cli.rollouts import Rollouts
from arl2.cli.selfcheck import Selfcheck
from arl2.cli.sensitivity import Sensitivity
from arl2.cli.serve import Serve
from arl2.cli.shapes import Render, Sample, Score
from arl2.cli.stream import Stream
from arl2.cli.train import Train
from arl2.errors import Arl2Error, suggestion
from arl2.version import __version__

_ABOUT = "Streaming video generation with constant memory: attend locally, remember linearly."
_EPILOGUE = """'arl2 COMMAND --help' explains a command and shows examples.
-v, --verbose, with any command, says which backends are chosen, and why."""
# What stands above the commands of a group of commands.
ABOUT = {
    "shapes": "The shapes world: scenes from a few numbers, captions, and an evaluator that reads videos.",
    "bench": (
        "Time and memory on this machine, with random weights. Every part checks correctness first and prints no "
        "figures if a check fails (exit code 1)."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Completion(Command):
    """Print a script that completes commands and options in your shell.

    Attributes:
        shell: Which shell.
    """

    positional: ClassVar = ("shell",)
    examples: ClassVar = (
        "arl2 completion bash > ~/.local/share/bash-completion/completions/arl2",
        "arl2 completion fish > ~/.config/fish/completions/arl2.fish",
    )
    shell: Literal["bash", "zsh", "fish"]

    def run(self) -> int:
        print(build_app().generate_completion(shell=self.shell))
        return 0


GROUPS: dict[str, dict[str, type[Command]]] = {
    "Generate": {"generate": Generate, "stream": Stream, "serve": Serve},
    "Models": {"models": Models, "download": Download, "inspect": Inspect, "export": Export, "convert": Convert},
    "Train": {"rollouts": Rollouts, "train": Train, "sensitivity": Sensitivity},
    "Evaluate": {"eval": Eval, "compare": Compare},
    "Laboratory": {"shapes sample": Sample, "shapes render": Render, "shapes score": Score},
    "Benchmarks": {
        "bench rollout": BenchRollout,
        "bench block": BenchBlock,
        "bench kernels": BenchKernels,
        "bench decode": BenchDecode,
        "bench snapshot": BenchSnapshot,
        "bench startup": BenchStartup,
        "bench train": BenchTrain,
        "bench compare": BenchCompare,
    },
    "Check": {"selfcheck": Selfcheck, "env": Env, "completion": Completion},
}
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}


class UsageError(Arl2Error):
    """Words that are no command line of arl2."""


@cache
def build_app() -> App:
    """The parser of all commands; building it imports no torch."""
    app = App(
        name="arl2",
        help=_ABOUT,
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        version=f"arl2 {__version__}",
        version_flags=["--version"],
        default_parameter=Parameter(negative=(), allow_repeating=True),
        group_commands=Group("Options", sort_key=9),
        suppress_keyboard_interrupt=False,
        verbose=False,
    )
    for order, (title, commands) in enumerate(GROUPS.items()):
        group = Group(title, sort_key=order)
        for name, command in commands.items():
            parent, _, verb = name.rpartition(" ")
            if parent and parent not in app:
                app.command(App(name=parent, help=ABOUT[parent], help_epilogue="", group=group))
            shown = "\n".join(_folded(line) for line in command.examples)
            (app[parent] if parent else app).command(
                parser_of(command),
                name=verb,
                help=summary(command),
                help_epilogue=f"Examples:\n{shown}",
                group="Commands" if parent else group,
            )
    return app


def _folded(line: str) -> str:
    """An example that can be pasted, on lines of a terminal's width."""
    lines = [""]
    for part in re.split(r" (?=-)", line):
        if lines[-1] and len(lines[-1]) + len(part) > 74:
            lines.append("")
        lines[-1] += f" {part}" if lines[-1] else part
    return "  " + " \\\n      ".join(lines)


def command_of(words: Sequence[str]) -> str:
    """The command that a command line names, such as ``shapes score``; empty if it names none."""
    named = [word for word in words if not word.startswith("-")]
    return next((name for name in (" ".join(named[:2]), *named[:1]) if name in COMMANDS), "")


def parse(words: Sequence[str]) -> Command | None:
    """The command with its options filled in; None where help or the version was asked for, and printed.

    Raises:
        UsageError: A command or an option that does not exist, a value that cannot be, or one that is missing.
        ConfigError: Options that exclude each other, or that have another name today.
    """
    ours = normalised(words, command_of(words))
    _require_values(ours, command_of(words))
    try:
        return build_app()(
            ours,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        command = " ".join(error.command_chain or ())
        raise UsageError(f"{_sentence(error, command)}\nsee 'arl2 {f'{command} ' if command else ''}--help'") from error


def _require_values(words: Sequence[str], command: str) -> None:
    """An option that takes several values takes at least one; the parser would take none for nothing given."""
    options = options_of(COMMANDS[command]) if command in COMMANDS else ()
    names = {name for option in options if several(option.hint) for name in option.names}
    for word, following in pairwise([*words, "--"]):
        if word in names and following.startswith("-"):
            raise UsageError(f"Option '{word}' needs one or more values.\nsee 'arl2 {command} --help'")


def _sentence(error: CycloptsError, command: str) -> str:
    if isinstance(error, UnknownOptionError):
        word = (error.token.keyword or error.token.value).partition("=")[0]
        return f"Unknown option '{word}'.{_near(word, _spellings(command))}"
    if isinstance(error, UnknownCommandError | UnusedCliTokensError):
        word = (error.unused_tokens or [""])[0]
        if word.startswith("-"):
            return f"Unknown option '{word}'.{_near(word, _spellings(command))}"
        if isinstance(error, UnusedCliTokensError):
            return f"Unexpected '{word}'."
        inside = [name.removeprefix(f"{command} ").split()[0] for name in COMMANDS if name.startswith(command)]
        return f"There is no command '{word}'. {suggestion(word, dict.fromkeys(inside))}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        if error.argument.tokens or error.keyword:
            return f"Option '{error.keyword or error.argument.name}' needs a value."
        return f"{_label(error.argument.name, command)} is missing."
    if isinstance(error, CoercionError) and error.argument is not None:
        said = str(error.msg or "a value that cannot be read").rstrip(".")
        end = "" if said.endswith("?") else "."
        typed = error.token.keyword if error.token else None
        label = f"Option '{typed}'" if typed else _label(error.argument.name, command)
        return f"{label}: {said}{end}"
    return str(error)


def _label(name: str, command: str) -> str:
    """An argument by its place, everything else by its option."""
    field = name.lstrip("-").replace("-", "_").lower()
    return field.upper() if field in COMMANDS[command].positional else f"Option '{name}'"


def _spellings(command: str) -> Iterator[str]:
    yield from ("--help",) if command else ("--help", "--version", "--verbose")
    if command in COMMANDS:
        for option in options_of(COMMANDS[command]):
            yield from option.names


def _near(word: str, known: Iterator[str]) -> str:
    names = list(known)
    beginning = [name for name in names if name.startswith(word) and len(word) > 3]
    said = f"Did you mean '{beginning[0]}'?" if beginning else suggestion(word, names)
    return f" {said}" if said.startswith("Did") else ""
