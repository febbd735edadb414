"""A page's code as a person pastes it: its blocks in order, into one folder, in one process.

Commands of ``arl2`` and Python run; so does whatever of a shell stands around them: comments, line ends with a
backslash, variables before a command, redirections, and pipes, whose reader is left out. Lines that prepare a machine
are checked without being run: ``make`` targets by ``make --dry-run``, ``pip install`` by the extras it names, ``git
clone`` by the folder that is entered next. A line of any other kind is an error: teach it here.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from arl2.cli.app import parse
from arl2.cli.generate import Generate
from arl2.cli.options import Command, options_of
from arl2.cli.rollouts import Rollouts
from arl2.cli.sensitivity import Sensitivity
from arl2.cli.shapes import Score
from arl2.cli.stream import Stream
from arl2.cli.train import Train
from arl2.model.registry import CARDS

ROOT = Path(__file__).parents[2]
# Longer videos of the embedded models, and everything that trains or loads other weights, run in miniature.
_FRAMES_IN_FULL = 100


@dataclass(frozen=True)
class Step:
    """Something to run: ``python`` code, or an ``arl2`` command with its environment and where its output goes."""

    python: str = ""
    words: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    stdout: str | None = None

    @property
    def command(self) -> Command:
        """The command that the words mean."""
        command = parse(self.words)
        assert command is not None, self.words
        return command


def steps_of(page: str) -> list[Step]:
    """Everything on a page that runs; what only prepares is checked on the way."""
    steps = []
    for language, block in re.findall(r"^```(sh|bash|shell|python)\n(.*?)^```$", page, flags=re.S | re.M):
        if language == "python":
            steps.append(Step(python=_smaller(block)))
            continue
        for line in block.replace("\\\n", " ").splitlines():
            steps += _steps_of_line(line)
    return steps


def _smaller(code: str) -> str:
    """Latents of published sizes take a tiny model minutes on a CPU."""
    return re.sub(r"height=60, width=104", "height=4, width=6", code)


def _steps_of_line(line: str) -> list[Step]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    steps, words, target = [], [], None
    reading = False
    tokens = [*lexer, ";"]
    for number, token in enumerate(tokens):
        if token in (";", "&&", "|", "&"):
            if words and not reading:
                steps += _step(words, target if token != "|" else "pipe")
            reading, words, target = token == "|", [], None
        elif token == ">":
            target = tokens[number + 1]
        elif number and tokens[number - 1] == ">":
            continue
        else:
            words.append(token)
    return steps


def _step(words: list[str], stdout: str | None) -> list[Step]:
    environment = {}
    while re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    name, *rest = words
    name = name.removeprefix(".venv/bin/")
    if name == "torchrun":
        name, rest = "arl2", rest[rest.index("arl2.cli.main") + 1 :]
    if name == "arl2":
        return [Step(words=rest, environment=environment, stdout=stdout)]
    if name == "make":
        targets = [word for word in rest if "=" not in word]
        done = subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif name in ("pip", "python", "python3", "uv") and "install" in rest:
        known = re.findall(r"^(\w+) = \[$", (ROOT / "pyproject.toml").read_text(), flags=re.M)
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(known), f"{words}: extras are {known}"
    else:
        prepares = {"git": "clone", "cd": "", "source": "activate", "python": "venv", "python3": "venv", "export": "="}
        assert prepares.get(name, "no such line") in " ".join(rest), f"Of what kind is this line? {words}"
    return []


def is_long(command: Command) -> bool:
    """Whether a command takes more than a minute, or has no end."""
    if isinstance(command, Train | Rollouts | Sensitivity):
        return True
    if isinstance(command, Score):
        return command.folder is None
    if not isinstance(command, Generate | Stream):
        return False
    card = CARDS.get(command.source.name)
    embedded = card is not None and card.kind == "embedded" and not command.source.weights
    resumed = isinstance(command, Stream) and command.saving.resume is not None
    endless = isinstance(command, Stream) and (command.forever or command.seconds is not None)
    frames = command.sampling.num_frames or 0
    return (
        not embedded
        or (isinstance(command, Generate) and command.published.given)
        or endless
        or resumed
        or (frames > _FRAMES_IN_FULL)
    )


def values_of(command: Command) -> dict[str, object]:
    """The options that were given, by the names of their fields."""
    found = {}
    for option in options_of(type(command)):
        value: object = command
        for name in option.path:
            value = getattr(value, name)
        if value != option.default:
            found[option.name] = value
    return found
