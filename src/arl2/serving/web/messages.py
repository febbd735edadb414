"""The JSON of the API: bodies of requests, what a viewer sends over its socket, and what is sent back.

Every body and message is checked here, strictly: an unknown field, or a value of another type, is refused.
"""

import json
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arl2.errors import ConfigError, suggestion
from arl2.model.settings import MAX_SEED, ChangeMode
from arl2.serving.file_names import is_text
from arl2.serving.live.wire import ACTIONS, Action, Command, Receipt, StreamInfo, StreamRequest
from arl2.streams.options import SamplingOptions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_LONGEST_NAME = 200
_LARGEST = 2**31 - 1
_MOST_TOLD = 16  # prompts that every stream.info has
_TOLD = 200  # characters of each
# A stream has no number of frames, and its seed is a field of its own.
OPTIONS = tuple(one.name for one in fields(SamplingOptions) if one.name not in ("num_frames", "seed"))
PROMPT = "a red circle moves right on navy"

Seed = Annotated[int | None, Field(ge=0, le=MAX_SEED, description="For another continuation; the same noise if null.")]
Key = Annotated[str, Field(max_length=_LONGEST_NAME, description="Your name for the command; its receipts have it.")]
Number = Annotated[int | None, Field(ge=0, le=_LARGEST)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewStream(_Body):
    """A stream to begin."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"prompt": PROMPT, "seed": 7}]}
    )
    prompt: str = Field(description="What it shows first.")
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = Field(default=None, description="One is drawn if null.")
    options: dict[str, Any] = Field(default_factory=dict, description=f"Sampling options: {', '.join(OPTIONS)}.")
    realtime: bool = Field(default=True, description="Paced as it is watched; false: as fast as it can be made.")
    blocks: Annotated[int | None, Field(ge=1, le=_LARGEST)] = Field(default=None, description="It ends after so many.")
    name: str = Field(default="", max_length=_LONGEST_NAME, description="Your own text, for lists.")

    def request(self, most_prompt: int) -> StreamRequest:
        """What a host takes; raises ``ConfigError`` for a prompt or an option that cannot be."""
        for name in self.options:
            if name not in OPTIONS:
                raise ConfigError(f"Unknown option '{name:.80}'. {suggestion(name, OPTIONS)}")
        SamplingOptions(**self.options)
        return StreamRequest(
            prompt=checked_prompt(self.prompt, most_prompt),
            seed=self.seed,
            options=self.options,
            realtime=self.realtime,
            blocks=self.blocks,
            name=self.name,
        )


class _CommandBody(_Body):
    key: Key = ""

    def command(self, action: Action, most_prompt: int) -> Command:
        """What a host takes; raises ``ConfigError`` for what does not go together."""
        return checked_command(Command(action=action, **self.model_dump()), most_prompt)


class Plain(_CommandBody):
    """Of pause and play."""


class NewPrompt(_CommandBody):
    """Another prompt from the next block on."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"prompt": "a blue circle moves left on navy"}]}
    )
    prompt: str
    mode: ChangeMode | None = Field(default=None, description="What it does to the video; the model's own way if null.")


class Rewind(_CommandBody):
    """Back to a kept point: give ``block`` or ``blocks``."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"blocks": 8}]})
    block: Number = Field(default=None, description="A kept point.")
    blocks: Number = Field(default=None, description="How many blocks to go back at least, to the nearest kept point.")
    seed: Seed = None


class Fork(_CommandBody):
    """A second stream that continues from here, or from a kept point."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"seed": 3}]})
    block: Number = Field(default=None, description="A kept point; now if null.")
    seed: Seed = None


class Interaction(_Body):
    """``session.interaction`` of a socket."""

    type: Literal["session.interaction"]
    action: Action
    key: Key = ""
    prompt: str | None = None
    mode: ChangeMode | None = None
    block: Number = None
    blocks: Number = None
    seed: Seed = None

    def command(self, most_prompt: int) -> Command:
        """What a host takes; raises ``ConfigError`` for what does not go together."""
        return checked_command(Command(**self.model_dump(exclude={"type"})), most_prompt)


def checked_prompt(prompt: str, most: int) -> str:
    """The prompt; ``ConfigError`` for one that is empty, longer than ``most`` characters, or no text."""
    if not prompt.strip():
        raise ConfigError(f'The prompt is empty; give words, such as "{PROMPT}".')
    if len(prompt) > most:
        raise ConfigError(f"The prompt has {len(prompt):,} characters; give at most {most:,}.")
    if not is_text(prompt):
        raise ConfigError("The prompt is not Unicode text; send it as UTF-8.")
    return prompt


# What an action takes beside its key.
_TAKES: dict[Action, tuple[str, ...]] = {
    "prompt": ("prompt", "mode"),
    "pause": (),
    "play": (),
    "rewind": ("block", "blocks", "seed"),
    "fork": ("block", "seed"),
}


def checked_command(command: Command, most_prompt: int) -> Command:
    """The command; raises ``ConfigError`` where fields are missing or do not go with its action."""
    for name in ("prompt", "mode", "block", "blocks", "seed"):
        if name not in _TAKES[command.action] and getattr(command, name) is not None:
            accepted = ", ".join(_TAKES[command.action]) or "only a key"
            raise ConfigError(f"'{name}' does not go with {command.action}, which takes {accepted}; leave it out.")
    if command.action == "prompt":
        checked_prompt(command.prompt or "", most_prompt)
    if command.action == "rewind" and (command.block is None) == (command.blocks is None):
        raise ConfigError("A rewind needs 'block', a kept point, or 'blocks', how many to go back; give one of them.")
    if command.blocks is not None and command.blocks < 1:
        raise ConfigError(f"Got blocks {command.blocks}; a rewind goes back by at least 1.")
    return command


def read_message(text: str) -> Interaction | dict[str, Any]:
    """What a viewer sent: an interaction, or a message of another type as it is.

    Raises:
        ConfigError: it is no JSON object, has no type that is known, or fields that cannot be.
    """
    try:
        message = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"A message that is no JSON ({_short(error)}); send an object with a 'type'.") from error
    if not isinstance(message, dict):
        raise ConfigError("A message that is no JSON object; send one with a 'type'.")
    kind = message.get("type")
    if kind == "session.interaction":
        try:
            return Interaction.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(sentence_of(error.errors())) from error
    if kind not in ("ping", "stop"):
        raise ConfigError(f"Unknown type {kind!r:.80}. Accepted: session.interaction, ping, stop.")
    return message


def sentence_of(errors: Any) -> str:
    """What is wrong with a body or a message, of pydantic's list of errors: the first one."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    if first["type"] == "extra_forbidden":
        return f"Unknown field '{place:.80}'; leave it out."
    if first["type"] == "missing":
        return f"Field '{place:.80}' is missing; give it." if place else "The body is missing; send a JSON object."
    if place == "action":
        return f"Got action {first['input']!r:.80}. Accepted: {', '.join(ACTIONS)}."
    said = first["msg"][:1].lower() + first["msg"][1:]
    return f"Got {first['input']!r:.80} for '{place or 'the body':.80}'; {said}."


def message(kind: str, **more: Any) -> str:
    """A text message of the server's."""
    return json.dumps({"type": kind, **more}, separators=(",", ":"))


def plain(value: "DataclassInstance") -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return asdict(value)


def info_message(info: StreamInfo, now: float) -> str:
    """``stream.info``: with the last prompts only, and the beginning of each, since all viewers get it every second."""
    points = tuple(replace(one, prompt=one.prompt[:_TOLD]) for one in info.points)
    prompts = tuple((block, prompt[:_TOLD]) for block, prompt in info.prompts[-_MOST_TOLD:])
    return message("stream.info", stream=plain(replace(info, points=points, prompts=prompts)), time=now)


def receipt_message(receipt: Receipt) -> str:
    """``session.interaction.queued``, ``.applied`` or ``.refused``."""
    return message(f"session.interaction.{receipt.state}", **plain(receipt))


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _short(error: Exception) -> str:
    return str(error)[:120] or type(error).__name__
