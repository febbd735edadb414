"""From dataclasses to options: a field is an option, its line under ``Attributes`` is the help text.

The parser is cyclopts: it reads plain signatures, so that :class:`~arl2.pipeline.options.SamplingOptions` needs to know
nothing of a command line; it takes several spellings of an option and lists such as ``0 1 2``, groups its help, and
completes in bash, zsh and fish. (tyro reads its spellings off annotations in the dataclass itself.)
"""

import inspect
import math
import os
import re
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter

from arl2.errors import suggestion
from arl2.model.settings import MAX_SEED, MAX_WHOLE
from arl2.pipeline.options import ModelSource, SamplingOptions


class Command(ABC):
    """A command: a frozen dataclass whose fields are the options.

    ``positional`` names the fields that may stand without their option's name, ``examples`` are two command lines.
    ``light`` is true of a command that saves no model, so that it need not wait for diffusers (:mod:`arl2.bases`).
    """

    positional: ClassVar[tuple[str, ...]] = ()
    light: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]]

    @abstractmethod
    def run(self) -> int:
        """Do it; the exit code."""


class Only:
    """In ``Annotated[ModelSource, Only("model", "device")]``: the fields that are options of this command."""

    def __init__(self, *names: str) -> None:
        self.names = names


# Of ``ModelSource``, what says which weights and parts, to a command that does not run them.
WEIGHTS_AND_PARTS = Only("model", "weights", "base", "vae", "text_encoder", "config", "weights_branch", "lora_alpha")


class Hidden:
    """In ``Annotated[Published, Hidden()]``: options that work and are not listed."""


@dataclass(frozen=True)
class Spelling:
    """How an option is written and read, where that does not follow from its field.

    Attributes:
        names: The option's names, the one that help and errors use first.
        read: The value that a word means; raises ``ValueError`` with a sentence.
        metavar: What stands for the value in the help.
        help: What it means on a command line, where the field's own text speaks of Python's values.
    """

    names: tuple[str, ...] = ()
    read: Callable[[str], Any] | None = None
    metavar: str | None = None
    help: str | None = None


@dataclass(frozen=True)
class Option:
    """An option of a command, taken from a field.

    Attributes:
        path: The fields that lead to it, from the command's dataclass.
        hint: The type of its value.
        default: Its value if it is not given; ``MISSING`` if it must be.
        help: What it means.
        group: The heading it stands under.
        hidden: Whether help leaves it out.
    """

    path: tuple[str, ...]
    hint: Any
    default: Any
    help: str
    group: str
    hidden: bool

    @property
    def name(self) -> str:
        """The field's name."""
        return self.path[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Its spellings, the one that help and errors use first."""
        return self.spelling.names or (f"--{self.name.replace('_', '-')}",)

    @property
    def spelling(self) -> Spelling:
        """What differs from the field."""
        return SPELLINGS.get(self.name, Spelling())

    @property
    def read(self) -> Callable[[str], Any] | None:
        """Its own reader of a word; None where the type says it all."""
        return self.spelling.read

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING


# -- reading values --------------------------------------------------------------------------------------------------


def whole(least: int, most: int = MAX_WHOLE) -> Callable[[str], int]:
    """Reader of whole numbers from ``least`` to ``most``."""

    def read(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            value = least - 1
        if value < least:
            raise ValueError(f"got '{word}'; give a whole number from {least}")
        if value > most:
            raise ValueError(f"got '{word}'; give a whole number from {least} to {most}")
        return value

    return read


def number(word: str) -> float:
    """A number above 0, not infinity."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"got '{word}'; give a number above 0")
    return value


def timestep(word: str) -> float:
    """0 (clean) to 1000 (noise)."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:
        raise ValueError(f"got '{word}'; give a timestep from 0 to 1000")
    return value


def steps(word: str) -> int | tuple[int, ...]:
    """``4`` is a number of steps, ``1000,500`` a list of timesteps (``1000,`` a list of one)."""
    try:
        return tuple(int(one) for one in word.split(",") if one.strip()) if "," in word else whole(1)(word)
    except ValueError:
        raise ValueError(f"got '{word}'; give a number of steps, or timesteps such as 1000,750,500") from None


def window(word: str) -> int | Literal["settings"] | None:
    """Latent frames, ``full`` for the whole past, or ``settings`` for the model's own."""
    if word in ("settings", "full"):
        return "settings" if word == "settings" else None
    try:
        return whole(1)(word)
    except ValueError:
        raise ValueError(
            f"got '{word}'; give a number of latent frames, 1 to {MAX_WHOLE}, or 'full' for the whole past"
        ) from None


def threads(word: str) -> int:
    """CPU threads, at most one for each core: more wait for each other, and thousands stop the machine."""
    value, cores = whole(1)(word), os.cpu_count() or 1
    if value > cores:
        raise ValueError(f"got {value}; this machine has {cores} cores, give at most that")
    return value


def minutes(word: str) -> float | Literal["all"]:
    """Minutes, or ``all`` of them."""
    return "all" if word == "all" else number(word)


def seconds_or_never(word: str) -> float | Literal["never"]:
    """Seconds, or ``never``."""
    return "never" if word == "never" else number(word)


_DTYPES = {
    **dict.fromkeys(("fp32", "float", "single"), "float32"),
    **dict.fromkeys(("fp16", "half"), "float16"),
    **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
    **dict.fromkeys(("fp64", "double"), "float64"),
}


def _choice(accepted: Sequence[str], aliases: dict[str, str]) -> Callable[[str], str]:
    def read(word: str) -> str:
        value = aliases.get(word.lower().removeprefix("torch."), word.removeprefix("torch."))
        if value not in accepted:
            raise ValueError(f"got '{word}'. {suggestion(word, accepted)}")
        return value

    return read


# One field name has one spelling and one meaning in all commands.
SPELLINGS: dict[str, Spelling] = {
    "num_frames": Spelling(("--frames", "--num-frames"), metavar="N"),
    "first_block_candidates": Spelling(("--candidates", "--first-block-candidates"), metavar="N"),
    "output": Spelling(("--output", "-o")),
    "seed": Spelling(read=whole(0, MAX_SEED), metavar="N"),
    "steps": Spelling(read=steps, metavar="N|LIST"),
    "window": Spelling(
        read=window,
        metavar="N|full",
        help="Latent frames that softmax layers attend to, or full for the whole past.",
    ),
    "sink": Spelling(read=whole(0), metavar="N"),
    "guidance_scale": Spelling(read=number, metavar="X"),
    "context_noise": Spelling(read=timestep, metavar="X"),
    "keep_minutes": Spelling(read=minutes, metavar="M|all"),
    "threads": Spelling(read=threads, metavar="N"),
    "state_rank": Spelling(read=whole(0), metavar="R"),
    "ffn_rank": Spelling(read=whole(0), metavar="R"),
    "shapes_prompts": Spelling(read=whole(0), metavar="N"),
    "as_json": Spelling(("--json",)),
    "allow_origin": Spelling(metavar="URL..."),
    "allow_host": Spelling(metavar="NAME..."),
    "port": Spelling(read=whole(0, 65535), metavar="N"),
    "sleep_after": Spelling(read=seconds_or_never, metavar="X|never"),
}
_NOTES = {
    SamplingOptions: ("Sampling", "What is not given follows the model's own settings."),
    ModelSource: ("Model", "The default is the embedded model, in float32 on the CPU (arl2 models lists all)."),
}
# Headings of the help: what is asked for most comes first, the others as 2.
_ORDER = {"Options": 1, "Sampling": 3, "Model": 4, "Reporting": 5}


# -- from a dataclass to a signature and back ------------------------------------------------------------------------


def options_of(command: type, _path: tuple[str, ...] = (), _hidden: bool = False) -> Iterator[Option]:
    """The options of a dataclass, those of embedded dataclasses in their place."""
    hints, texts = get_type_hints(command, include_extras=True), descriptions(command)
    group = _NOTES[command][0] if command in _NOTES else "Options" if not _path else command.__name__
    for field in fields(command):
        hint, marks = _bare(hints[field.name])
        path = (*_path, field.name)
        hidden = _hidden or any(isinstance(mark, Hidden) for mark in marks)
        if is_dataclass(hint) and isinstance(hint, type):
            inner = options_of(hint, path, hidden)
            shown = [name for mark in marks if isinstance(mark, Only) for name in mark.names]
            yield from (option for option in inner if not shown or option.name in shown)
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield Option(path, hint, default, texts.get(field.name, ""), group, hidden)


def descriptions(command: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those it extends say of each field under ``Attributes``."""
    texts: dict[str, str] = {}
    for kind in reversed(command.__mro__):
        _, _, listed = inspect.cleandoc(vars(kind).get("__doc__") or "").partition("\nAttributes:\n")
        entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", listed, flags=re.M)
        texts |= {name: " ".join(text.replace("``", "'").split()) for name, text in entries}
    return texts


def summary(command: type) -> str:
    """The docstring without its list of attributes; paragraphs are a line each, as are entries of a list (``- ``)."""
    text, _, _ = (inspect.getdoc(command) or "").partition("\nAttributes:\n")
    parts = text.replace("``", "'").strip().split("\n\n")
    return "\n\n".join(re.sub(r"\s*\n(?!- )\s*", " ", part) for part in parts)


def parser_of(command: type[Command]) -> Callable[..., Command]:
    """A function with the command's options as its parameters, for cyclopts; it gives the filled dataclass."""
    options = {option.name: option for option in options_of(command)}

    order = [options[name] for name in command.positional]
    order += [option for name, option in options.items() if name not in command.positional]
    signature = inspect.Signature([_parameter(option, command) for option in order])

    def fill(*words: Any, **values: Any) -> Command:
        given = signature.bind(*words, **values).arguments
        return _built(command, {options[name].path: value for name, value in given.items()})

    fill.__signature__ = signature  # type: ignore[attr-defined]
    fill.__annotations__ = {}
    return fill


def _built(kind: type, values: dict[tuple[str, ...], Any]) -> Any:
    """``kind`` with values by their paths; embedded dataclasses are built the same way."""
    given = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, _ = _bare(hints[field.name])
        if is_dataclass(hint) and isinstance(hint, type):
            given[field.name] = _built(hint, {path[1:]: x for path, x in values.items() if path[0] == field.name})
        elif (field.name,) in values:
            given[field.name] = values[(field.name,)]
    return kind(**given)


def _parameter(option: Option, command: type[Command]) -> inspect.Parameter:
    kinds = inspect.Parameter
    listed = several(option.hint)
    variadic = listed and option.name in command.positional
    placed = kinds.VAR_POSITIONAL if variadic else kinds.POSITIONAL_OR_KEYWORD
    kind = placed if option.name in command.positional else kinds.KEYWORD_ONLY
    first, *others = option.names
    parameter = Parameter(
        name=None if variadic else first,
        alias=others,
        help=described(option),
        show=not option.hidden,
        show_default=False,
        group=_group(option, command),
        converter=_converter(option),
        consume_multiple=listed and not variadic,
        metavar=metavar(option),
    )
    hint = get_args(option.hint)[0] if variadic else _one_word(option)
    default = kinds.empty if variadic or option.required else option.default
    return kinds(option.name, kind, default=default, annotation=Annotated[hint, parameter])


def _one_word(option: Option) -> Any:
    """The type as cyclopts needs it: a value with a reader of its own is a word, whatever it means.

    ``Any``, not ``str``: where a program has imported pydantic, cyclopts checks values once more, those that were read.
    """
    if several(option.hint):
        return tuple[Any, ...] if int in get_args(option.hint) else option.hint
    read = option.read is not None or {int, float} & set(_members(option.hint))
    return Any if read else option.hint


def _group(option: Option, command: type[Command]) -> Group | str:
    if option.name in command.positional:
        return "Arguments"
    return Group(option.group, help=notes(option.group), sort_key=_ORDER.get(option.group, 2))


def notes(group: str) -> str:
    """What holds for all options under a heading."""
    return next((text for title, text in _NOTES.values() if title == group), "")


def described(option: Option) -> str:
    """The help text, with the default where the text does not say it."""
    text = option.spelling.help or option.help
    if option.default in (None, False, (), MISSING, "settings", "") or "(default" in text or "default)" in text:
        return text
    return f"{text.removesuffix('.')} (default: {option.default})."


def metavar(option: Option) -> str | None:
    """What stands for the value; None for a flag and where choices are listed."""
    kinds = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
    own = next((kinds[kind] for kind in _members(option.hint) if kind in kinds), None)
    return option.spelling.metavar or ("N..." if several(option.hint) else own)


def _converter(option: Option) -> Callable[[Any, Any], Any] | None:
    if several(option.hint) and int in get_args(option.hint):
        return lambda _, tokens: tuple(_layer(word) for token in tokens for word in token.value.split(","))
    read = option.read
    accepted = choices_of(option.hint)
    if read is None and accepted:
        read = _choice(accepted, _DTYPES if option.name == "dtype" else {})
    if read is None:
        read = {int: whole(1), float: number}.get(next(iter(_members(option.hint)), None))  # type: ignore[arg-type]
    if read is None:
        return None
    one = read
    return lambda _, tokens: one(tokens[0].value)


def _layer(word: str) -> int:
    try:
        return whole(0)(word)
    except ValueError:
        raise ValueError(f"got '{word}'; give layer numbers from 0, such as 0 1 2 (prompts come before it)") from None


def choices_of(hint: Any) -> tuple[str, ...]:
    """The words that a ``Literal``, or a union with one, accepts."""
    literals = [one for one in _members(hint) if get_origin(one) is Literal]
    return tuple(word for one in literals for word in get_args(one) if isinstance(word, str))


def _members(hint: Any) -> tuple[Any, ...]:
    union = get_origin(hint) in (Union, types.UnionType)
    return tuple(one for one in (get_args(hint) if union else (hint,)) if one is not type(None))


def several(hint: Any) -> bool:
    """Whether an option takes several values."""
    return get_origin(hint) is tuple


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A hint and what is annotated to it."""
    return (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
