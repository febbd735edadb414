"""Settings of a run: read from JSON or TOML, changed by ``key=value`` words, compared between runs."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from arl2.errors import ConfigError
from arl2.files.plain import read_json_value, read_toml
from arl2.files.records import Word, typed

_LARGEST = 1_000_000  # bytes of a file of settings
# Settings that change when a run stops, what it keeps or what it shows, but not what it computes.
_HARMLESS = {
    *("checkpoint_every", "keep_checkpoints", "log_every", "tensorboard"),
    *("evaluate_every", "evaluate_first", "pictures_every"),
    "any_clips",  # which of them train is said by clips
    *("sharding", "activation_checkpointing"),  # where things lie and when they are computed
}
# Settings that some runs were begun before: what those ran with.
_YOUNGER = {"sharding": "none", "compute": "float32"}
_YOUNGER_OF_TASKS = {
    "own_block_share": 0.0,
    "window_lengths": [],
    "start_from": None,
    "state_horizon": None,
    "resampled_share": 0.0,
    "resample_rounds": [1],
}


def read_config_values(path: Path) -> dict[str, Any]:
    """Values of a ``.json`` or ``.toml`` file, unchecked: ``config_from_mapping`` checks them.

    Raises:
        ConfigError: if the file is missing, of another kind, or cannot be parsed.
    """
    if path.suffix not in (".json", ".toml"):
        raise ConfigError(f"Settings are read from a .json or .toml file; got '{path}'.")
    read: Callable[..., Any] = read_json_value if path.suffix == ".json" else read_toml
    values = read(path, limit=_LARGEST, error=ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"The settings file '{path}' must hold names and values, but holds {type(values).__name__}.")
    return values


def with_overrides(values: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """``values`` with words like ``loop.steps=100`` put in.

    A value is JSON, or else text: of a list, its values with commas between, or one of several words.
    """
    result = json.loads(json.dumps(dict(values)))
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"A setting is written name=value or part.name=value; got '{word}'.")
        *parts, name = path.split(".")
        place = result
        for part in parts:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{word}' goes inside '{part}', which is a single value.")
        value, before = typed(text), place.get(name)
        place[name] = Word(value, before if isinstance(before, Word) else None) if isinstance(value, str) else value
    return result


def config_differences(before: Mapping[str, Any], after: Mapping[str, Any], *, inside: str = "") -> list[str]:
    """Settings that differ between two plain mappings, as ``name: before -> after``, nested names with dots."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += config_differences(old, new, inside=f"{inside}{name}.")
        elif old != new:
            lines.append(f"{inside}{name}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def accepted_changes(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, accept_all: bool) -> list[str]:
    """What differs between the settings a run began with and those it is resumed with, one line each.

    Raises:
        ConfigError: a difference that changes what is computed, unless all are accepted.
    """
    loop = now.get("loop", {})
    known = {name: value for name, value in _YOUNGER.items() if name in loop} | before.get("loop", {})
    before = {name: value for name, value in _YOUNGER_OF_TASKS.items() if name in now} | dict(before)
    lines = config_differences({**before, "loop": known}, {**now, "loop": loop})
    harmless = _HARMLESS | ({"max_minutes"} if loop.get("steps") is not None else set())
    serious = [line for line in lines if line.partition(":")[0].rpartition(".")[2] not in harmless]
    if serious and not accept_all:
        raise ConfigError(
            f"The run in '{folder}' was made with other settings ({'; '.join(serious)}); use another folder, or accept "
            "the changes."
        )
    return lines


def check_number(
    name: str, value: float, *, least: float | None = None, above: float | None = None, below: float | None = None
) -> None:
    """Refuse NaN, infinity and numbers outside these bounds; raises ``ConfigError`` with the setting's name."""
    inside = (least is None or value >= least) and (above is None or value > above) and (below is None or value < below)
    if math.isfinite(value) and inside:
        return
    bounds = {"from": least, "above": above, "below": below}
    said = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    raise ConfigError(f"{name} is {value}; give a number {said}.")


def without_retired(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without settings that ``kind`` once had: its ``RETIRED`` names them with the value that did nothing.

    So settings files and runs from before still work, unless they made use of what is gone.

    Raises:
        ConfigError: a retired setting with another value.
    """
    retired: Mapping[str, Any] = next((vars(one)["RETIRED"] for one in kind.__mro__ if "RETIRED" in vars(one)), {})
    for name, unused in retired.items():
        if name in values and values[name] != unused:
            raise ConfigError(
                f"The setting '{name}' was removed (docs/log.md says what it did); leave it out, or at "
                f"{json.dumps(unused)}."
            )
    return {name: value for name, value in values.items() if name not in retired}


def check_share(name: str, value: float) -> None:
    """Raises ``ConfigError`` unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; give a share from 0 to 1.")
