"""Which layers to make hybrid: ranges, a share of all, or the least sensitive of a ranking."""

import math
from collections.abc import Sequence
from pathlib import Path

from arl2.errors import ConfigError
from arl2.files.plain import read_json_value


def parse_layers(text: str, num_layers: int) -> list[int]:
    """Layers from words such as ``0-21,25``: numbers and ranges, both ends included, in order.

    >>> parse_layers("0-2,5", 8)
    [0, 1, 2, 5]

    Raises:
        ConfigError: not such words, a range that runs backwards, or a layer that the model does not have.
    """
    found: set[int] = set()
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"Layers {text!r} are no numbers and ranges; give some such as 0-21,25.")
        start, stop = int(first), int(last) if dash else int(first)
        if start > stop:
            raise ConfigError(f"The range of layers {word.strip()} runs backwards; give the smaller number first.")
        # Checked before it is spelled out: a range may be of any size.
        check_layers([start, stop], num_layers)
        found.update(range(start, stop + 1))
    return sorted(found)


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Raise ``ConfigError`` for layers that a model of so many does not have."""
    unknown = [layer for layer in layers if not 0 <= layer < num_layers]
    if unknown:
        raise ConfigError(f"There is no layer {unknown[0]}: the model has layers 0 to {num_layers - 1}.")


def share_of_layers(
    fraction: float, num_layers: int, *, keep: Sequence[int] = (), ranking: Sequence[int] | None = None
) -> list[int]:
    """The layers that a share of all, rounded down, makes hybrid: 0.75 of 30 are 22, as published.

    Args:
        fraction: above 0, at most 1.
        num_layers: of the model.
        keep: layers that stay softmax; others take their place.
        ranking: layers, the least sensitive first; None: the first layers of the model, as published.

    Raises:
        ConfigError: a share that is none, a layer that is not there, or too few layers to choose from.
    """
    count = math.floor(fraction * num_layers + 1e-9) if math.isfinite(fraction) else 0
    if not 0 < fraction <= 1 or not count:
        raise ConfigError(
            f"Got a share of {fraction:g} of {num_layers} layers; give {1 / num_layers:.3f} (one layer) to 1 (all)."
        )
    check_layers(keep, num_layers)
    order = range(num_layers) if ranking is None else ranking
    check_layers(order, num_layers)
    allowed = [layer for layer in order if layer not in set(keep)]
    if len(allowed) < count:
        source = "the model has" if ranking is None else "the ranking names"
        raise ConfigError(
            f"A share of {fraction:g} is {count} layers, but without those to keep {source} {len(allowed)}; give a "
            "smaller share, or keep fewer."
        )
    return sorted(allowed[:count])


def read_ranking(path: Path) -> list[int]:
    """The ranking in a file of ``arl2 sensitivity``: an object whose ``ranking`` lists layers, least sensitive first.

    Raises:
        ConfigError: no such file, or none of that kind.
    """
    values = read_json_value(path, error=ConfigError)
    ranking = values.get("ranking") if isinstance(values, dict) else None
    if not isinstance(ranking, list) or not all(type(layer) is int for layer in ranking):
        raise ConfigError(f"'{path}' holds no list of layers called 'ranking'; give a file of 'arl2 sensitivity'.")
    if len(set(ranking)) != len(ranking):
        raise ConfigError(f"The ranking in '{path}' names a layer twice; give each once.")
    return ranking
