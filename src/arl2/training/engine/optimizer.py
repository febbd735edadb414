"""The optimizers of a run behind one face: AdamW, and Muon for matrices between hidden layers if asked for."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from arl2.training.engine.task import ParameterGroup

OptimizerName = Literal["adamw", "muon"]

# Muon's steps are scaled to the size of AdamW's ("match_rms_adamw"), and bear being this much larger.
_MUON_SCALE = 2.5


class Optimizers:
    """AdamW, and Muon (Jordan et al. 2024; torch's own) for the groups that are ``hidden``, if asked for.

    Args:
        groups: what trains.
        name: ``"adamw"`` or ``"muon"``.
        learning_rate: peak; ``set_learning_rate`` moves it.
        adam_betas: of AdamW.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        name: OptimizerName,
        learning_rate: float,
        adam_betas: tuple[float, float],
    ) -> None:
        by_muon = [group for group in groups if name == "muon" and group.hidden]
        by_adam = [group for group in groups if group not in by_muon]
        self.parts: list[torch.optim.Optimizer] = []
        if by_muon:
            described = _described(by_muon, _MUON_SCALE)
            self.parts.append(torch.optim.Muon(described, lr=learning_rate, adjust_lr_fn="match_rms_adamw"))
        if by_adam:
            self.parts.append(torch.optim.AdamW(_described(by_adam, 1.0), lr=learning_rate, betas=adam_betas))
        self.learning_rate = learning_rate

    def set_learning_rate(self, value: float) -> None:
        """For the next step; groups take their own multiple of it."""
        self.learning_rate = value
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = value * group["scale"]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Move every parameter."""
        for part in self.parts:
            part.step()

    def state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What the parameter's optimizer remembers of it; filled in place when a checkpoint is loaded."""
        for part in self.parts:
            if any(parameter is own for group in part.param_groups for own in group["params"]):
                return part.state[parameter]
        raise KeyError("the parameter belongs to no group of this run")


def _described(groups: Sequence[ParameterGroup], scale: float) -> list[dict[str, Any]]:
    return [
        {
            "params": list(group.parameters.values()),
            "weight_decay": group.weight_decay,
            "scale": group.learning_rate_scale * scale,
        }
        for group in groups
    ]
