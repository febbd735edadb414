"""The optimizer step: AdamW, or Muon for hidden matrices; its learning rate; the norm of its gradients."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arl2.training.engine.processes import full_tensor
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


def learning_rate_factor(step: int, progress: float, *, warmup_steps: int, final: float) -> float:
    """What the peak learning rate is multiplied by.

    Args:
        step: optimizer step, from 0; warm-up counts these.
        progress: how much of the run is done, 0 to 1, by steps or by minutes: the cosine follows it.
        warmup_steps: steps until the peak; 0 for none.
        final: factor at the end of the run.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(max(progress, 0.0), 1.0))
    return warm * (final + (1 - final) * cosine)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together."""
    return full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def what_is_not_finite(loss: float, norm: float, step: int, parameters: Mapping[str, nn.Parameter]) -> str | None:
    """What of a step is NaN or infinite, in words; None if all is well. Of shards, all processes must ask."""
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    broken = [name for name, p in parameters.items() if p.grad is not None and not full_tensor(p.grad).isfinite().all()]
    what = f"loss is {loss}" if not math.isfinite(loss) else f"norm of all gradients is {norm}"
    return f"{what} at step {step}" + (f", first in the gradient of '{broken[0]}'" if broken else "")
