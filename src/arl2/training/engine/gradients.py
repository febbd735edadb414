"""All gradients of a step together: their norm, and which of them broke; over shards as over whole tensors."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from arl2.training.engine.shards import whole


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Norm of all gradients together."""
    return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def what_is_not_finite(loss: float, norm: float, step: int, parameters: Mapping[str, nn.Parameter]) -> str | None:
    """What of a step is NaN or infinite, in words; None if all is well. Of shards, all processes must ask."""
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    broken = [name for name, p in parameters.items() if p.grad is not None and not whole(p.grad).isfinite().all()]
    what = f"loss is {loss}" if not math.isfinite(loss) else f"norm of all gradients is {norm}"
    return f"{what} at step {step}" + (f", first in the gradient of '{broken[0]}'" if broken else "")
