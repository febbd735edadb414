"""Finding the weights inside a checkpoint: training frameworks put them under a key, beside much else.

``generator`` and ``generator_ema`` are the published keys; ``state_dict`` is Lightning's, ``module`` DeepSpeed's,
``model`` everybody's. One may stand in another, and each may have an EMA beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from arl2.errors import CheckpointError

Branch = Literal["auto", "ema", "plain"]
PLAIN = ("generator", "state_dict", "model", "module")
EMA = (*(f"{name}_ema" for name in PLAIN), "ema")
_DEEPEST = 5


@dataclass(frozen=True)
class Contained:
    """The weights of a checkpoint.

    Attributes:
        tensors: by name, as stored.
        branch: the keys that lead to them, with dots between; None if the file is nothing but named tensors.
        unused: entries that were passed over, and how many tensors each has.
    """

    tensors: dict[str, Tensor]
    branch: str | None = None
    unused: dict[str, int] = field(default_factory=dict)


def weights_in(content: Any, where: str, branch: str = "auto") -> Contained:
    """The weights in what a file holds.

    Args:
        content: as read.
        where: what errors call the file.
        branch: of a checkpoint with two sets of weights: ``"auto"`` prefers the EMA, ``"ema"`` and ``"plain"`` insist.
            Named tensors alone are one set, whatever is requested.

    Raises:
        CheckpointError: no weights, several models, not the branch that was requested, or entries beside the weights
            that are no tensors.
    """
    if branch not in get_args(Branch):
        raise CheckpointError(f"Weights {branch!r} are not known; choose one of {', '.join(get_args(Branch))}.")
    taken: list[str] = []
    unused: dict[str, int] = {}
    while True:
        if not isinstance(content, dict):
            raise CheckpointError(f"{where} holds a {type(content).__name__}; a checkpoint is a dict of tensors.")
        name, branch = _chosen(content, where, branch)
        if name is None:
            break
        if len(taken) == _DEEPEST:
            raise CheckpointError(f"{where} nests its weights more than {_DEEPEST} deep; save them under one key.")
        prefix = "".join(f"{one}." for one in taken)
        unused |= {f"{prefix}{key}": _tensor_count(value) for key, value in content.items() if key != name}
        taken.append(name)
        content = content[name]
    if branch == "ema" and taken:
        raise CheckpointError(f"{where} has no {taken[-1]}_ema weights, only {'.'.join(taken)}; choose another branch.")
    path = ".".join(taken) or None
    _require_named_tensors(content, where, path)
    return Contained(dict(content), path, unused)


def _chosen(content: Mapping[Any, Any], where: str, branch: str) -> tuple[str | None, str]:
    """The key to continue with, None at the weights themselves; and what of the branch is still to be decided."""
    plain, ema = ([name for name in names if isinstance(content.get(name), dict)] for names in (PLAIN, EMA))
    for names in (plain, ema):
        if len(names) > 1:
            raise CheckpointError(
                f"{where} holds several models: {', '.join(names)}; save the one to load in a file of its own."
            )
    if ema and branch in ("auto", "ema"):
        return ema[0], "auto"
    if plain:
        return plain[0], branch
    if ema:
        raise CheckpointError(
            f"{where} has no {ema[0].removesuffix('_ema')} weights, only {ema[0]}; choose another branch."
        )
    return None, branch


def _require_named_tensors(content: Mapping[Any, Any], where: str, path: str | None) -> None:
    here = where if path is None else f"{where}, {path}"
    strangers = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if path is None and len(strangers) == len(content):
        keys = ", ".join((*PLAIN, *EMA))
        found = f" but {_few(content)}" if content else ""
        raise CheckpointError(
            f"{where} holds no named tensors{found}; give them, or a checkpoint that holds them under one of {keys}."
        )
    if strangers:
        kind = type(content[strangers[0]]).__name__
        raise CheckpointError(f"{here}: {strangers[0]!r} is a {kind}; give a file of named tensors alone.")
    if not content:
        raise CheckpointError(f"{here} holds no named tensors; give another file.")


def _tensor_count(value: Any) -> int:
    """Different tensors at any depth; each dict is visited once, however often it is referred to."""
    seen: set[int] = set()
    count, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        if isinstance(one, Tensor):
            count += 1
            seen.add(id(one))
        elif isinstance(one, dict):
            seen.add(id(one))
            waiting += one.values()
    return count


def _few(names: Mapping[Any, Any]) -> str:
    shown = [str(name) for name in list(names)[:4]]
    return ", ".join(shown) + (", ..." if len(names) > 4 else "")
