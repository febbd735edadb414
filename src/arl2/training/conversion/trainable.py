"""What trains in a conversion: the table of spec 4, by stage, everything else frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from arl2.errors import ConfigError
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.engine.task import ParameterGroup

Stage = Literal[1, 2]


@dataclass(frozen=True)
class Part:
    """A kind of parameter that trains.

    Attributes:
        label: as the published code and the paper's tables call it.
        stage: from which on it trains.
        endings: of the names of its parameters.
        decays: whether weight decay may pull on it.
        hidden: whether they are matrices between hidden layers, which Muon is made for.
    """

    label: str
    stage: Stage
    endings: tuple[str, ...]
    decays: bool = True
    hidden: bool = False


_STATE = "self_attention.state"
PARTS = (
    Part("a_proj", 1, (f"{_STATE}.decay_proj.weight",)),
    Part("b_proj", 1, (f"{_STATE}.beta_proj.weight",)),
    Part("A_log", 1, (f"{_STATE}.A_log",), decays=False),
    Part("dt_bias", 1, (f"{_STATE}.dt_bias",), decays=False),
    *(Part(f"phi_{x}", 1, (f"{_STATE}.phi_{x}",)) for x in "qkv"),
    Part("gate_proj", 1, ("self_attention.gate_proj.weight",)),
    *(Part(f"lora_{x}", 2, (f"{_STATE}.changes.{x}.A", f"{_STATE}.changes.{x}.B"), hidden=True) for x in "qkv"),
    Part("ffn low-rank", 2, tuple(f"ffn.{half}.change.{x}" for half in ("up", "down") for x in "AB"), hidden=True),
)


def part_of(name: str, stage: Stage) -> Part | None:
    """The part that a parameter of the transformer belongs to; None if it stays frozen in this stage."""
    for part in PARTS:
        if part.stage <= stage and name.startswith("layers.") and name.endswith(part.endings):
            return part
    return None


def unfreeze(model: CausalWanTransformer3DModel, stage: Stage) -> dict[str, nn.Parameter]:
    """Freeze the model but for what trains in this stage; those are given back by name, in float32.

    Raises:
        ConfigError: nothing trains: no layer is hybrid.
    """
    trained = {}
    for name, parameter in model.named_parameters():
        trains = part_of(name, stage) is not None
        parameter.requires_grad_(trains)
        if trains:
            parameter.data = parameter.data.float()
            trained[name] = parameter
    if not trained:
        raise ConfigError(
            f"Nothing trains in a model of plan {model.config.layer_plan}: no layer is hybrid; name some in plan."
        )
    return trained


def groups_of(trained: Mapping[str, nn.Parameter], stage: Stage, *, weight_decay: float) -> list[ParameterGroup]:
    """Three groups: low-rank changes (``hidden``), what else has weight decay, and what has none.

    The last are ``A_log`` and ``dt_bias``. A group that would be empty is left out.
    """
    members: dict[tuple[bool, bool], dict[str, nn.Parameter]] = {
        (True, True): {},
        (True, False): {},
        (False, False): {},
    }
    for name, parameter in trained.items():
        if (part := part_of(name, stage)) is not None:
            members[part.decays, part.hidden][name] = parameter
    return [
        ParameterGroup(own, weight_decay=weight_decay if decays else 0.0, hidden=hidden)
        for (decays, hidden), own in members.items()
        if own
    ]


@dataclass(frozen=True)
class Row:
    """A line of the parameter table: how many numbers of a part train, in how many layers."""

    label: str
    stage: int
    layers: int
    parameters: int
    weight_decay: bool


@dataclass(frozen=True)
class ParameterTable:
    """What trains and what does not."""

    rows: tuple[Row, ...]
    frozen: int

    @property
    def trained(self) -> int:
        """Numbers that train."""
        return sum(row.parameters for row in self.rows)

    @property
    def share(self) -> float:
        """What trains over what is frozen (the pretrained weights, where the stage trains all that is new)."""
        return self.trained / self.frozen

    def text(self) -> str:
        """The table as lines for a terminal."""
        lines = [f"{'part':<14}{'from stage':>11}{'layers':>8}{'parameters':>14}  weight decay"]
        lines += [
            f"{row.label:<14}{row.stage:>11}{row.layers:>8}{row.parameters:>14,}  {'yes' if row.weight_decay else 'no'}"
            for row in self.rows
        ]
        lines.append(f"{'trains':<33}{self.trained:>14,}  {100 * self.share:.2f} % of the frozen")
        lines.append(f"{'frozen':<33}{self.frozen:>14,}")
        return "\n".join(lines)


def parameter_table(model: CausalWanTransformer3DModel, stage: Stage) -> ParameterTable:
    """Count what trains; works on the meta device."""
    counts: dict[str, int] = {}
    layers: dict[str, set[str]] = {}
    frozen = 0
    for name, parameter in model.named_parameters():
        part = part_of(name, stage)
        if part is None:
            frozen += parameter.numel()
        else:
            counts[part.label] = counts.get(part.label, 0) + parameter.numel()
            layers.setdefault(part.label, set()).add(name.split(".")[1])
    rows = tuple(
        Row(part.label, part.stage, len(layers[part.label]), counts[part.label], part.decays)
        for part in PARTS
        if part.label in counts
    )
    return ParameterTable(rows, frozen)


def trained_tensors(model: CausalWanTransformer3DModel, stage: Stage) -> dict[str, torch.Tensor]:
    """The tensors of a model that this stage trains, by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if part_of(name, stage) is not None}
