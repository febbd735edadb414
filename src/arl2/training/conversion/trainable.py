"""What trains in a conversion, by stage, everything else frozen: what each kind of attention says, and LoRAs."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from arl2.attention.kind import Part
from arl2.attention.kind import Stage as Stage
from arl2.attention.plan import all_kinds, kind_of
from arl2.errors import ConfigError
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.engine.task import ParameterGroup

_FFN = Part("ffn low-rank", 2, tuple(f"ffn.{half}.change.{x}" for half in ("up", "down") for x in "AB"), hidden=True)


def parts_of(plan: str) -> tuple[Part, ...]:
    """All that trains in a model of this plan, in the order of tables; the feed-forwards' LoRAs come last."""
    kinds = [kind for kind in all_kinds() if kind.letter in plan]
    # Kinds share labels: a table counts them together.
    by_label = {part.label: part for kind in reversed(kinds) for part in reversed(kind.parts)}
    return (*reversed(by_label.values()), _FFN)


def part_of(name: str, plan: str, stage: Stage) -> Part | None:
    """The part that a parameter of the transformer belongs to; None if it stays frozen in this stage."""
    top, _, rest = name.partition(".")
    if top != "layers":
        return None
    layer, _, inner = rest.partition(".")
    own = ((f"self_attention.{ending}", part) for part in kind_of(plan[int(layer)]).parts for ending in part.endings)
    for ending, part in (*own, *((ending, _FFN) for ending in _FFN.endings)):
        if part.stage <= stage and inner == ending:
            return part
    return None


def trained_parameters(model: CausalWanTransformer3DModel, stage: Stage) -> dict[str, nn.Parameter]:
    """What of a model trains in this stage, by name; frozen or not."""
    plan = model.config.layer_plan
    return {name: p for name, p in model.named_parameters() if part_of(name, plan, stage) is not None}


def unfreeze(model: CausalWanTransformer3DModel, stage: Stage) -> dict[str, nn.Parameter]:
    """Freeze the model but for what trains in this stage; those are given back by name, in float32.

    Raises:
        ConfigError: nothing trains: no layer is converted.
    """
    trained = trained_parameters(model, stage)
    if not trained:
        raise ConfigError(
            f"Nothing trains in a model of plan {model.config.layer_plan}: no layer is converted; name some in plan."
        )
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()
    return trained


def groups_of(
    model: CausalWanTransformer3DModel, trained: Mapping[str, nn.Parameter], stage: Stage, *, weight_decay: float
) -> list[ParameterGroup]:
    """Groups by whether weight decay pulls on them and whether Muon is made for them (``hidden``: the LoRAs).

    A group that would be empty is left out.

    Args:
        trained: parameters of ``model`` by name, or what stands for them once they are cut into shards.
    """
    members: dict[tuple[bool, bool], dict[str, nn.Parameter]] = {
        (decays, hidden): {} for decays in (True, False) for hidden in (True, False)
    }
    for name, parameter in trained.items():
        if (part := part_of(name, model.config.layer_plan, stage)) is not None:
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
    plan = model.config.layer_plan
    for name, parameter in model.named_parameters():
        part = part_of(name, plan, stage)
        if part is None:
            frozen += parameter.numel()
        else:
            counts[part.label] = counts.get(part.label, 0) + parameter.numel()
            layers.setdefault(part.label, set()).add(name.split(".")[1])
    rows = tuple(
        Row(part.label, part.stage, len(layers[part.label]), counts[part.label], part.decays)
        for part in parts_of(plan)
        if part.label in counts
    )
    return ParameterTable(rows, frozen)
