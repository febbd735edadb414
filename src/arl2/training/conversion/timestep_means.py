"""A loss that is larger at some sigmas than at others, divided by a running mean for each part of the range."""

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError
from arl2.training.engine.processes import Processes

# A bucket's mean counts as at least this share of the mean of all, so that easy sigmas are not blown up.
_LEAST = 0.01
# And of the batch's own mean: a student that begins as its teacher has no error until something is hidden from it.
_LEAST_OF_BATCH = 0.001


class TimestepMeans:
    """Running means of a loss by sigma, the same on all processes.

    All batches of a step see the means of the step before, so the number of processes changes nothing.

    Args:
        buckets: equal parts of the range 0 to 1.
        decay: of the means, a step; while a bucket is young its mean is the plain one.
        device: of the errors.

    Raises:
        ConfigError: no bucket, or a decay outside [0, 1).
    """

    def __init__(self, buckets: int, decay: float, device: torch.device) -> None:
        if buckets < 1 or not 0 <= decay < 1:
            raise ConfigError(
                f"level_buckets is {buckets} and level_decay {decay}; give 1 or more, and 0 to just below 1."
            )
        self.decay = decay
        self.means = torch.zeros(buckets, device=device)
        self.steps = torch.zeros(buckets, device=device)
        self._sums = torch.zeros(2, buckets, device=device)

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; filled in place."""
        return {"level_means": self.means, "level_steps": self.steps}

    def divided(
        self, errors: Float[Tensor, "batch blocks"], sigma: Float[Tensor, "batch blocks"]
    ) -> Float[Tensor, "batch blocks"]:
        """``errors`` over the means of their sigmas; they are remembered for the next step's means."""
        buckets = (sigma * len(self.means)).long().clamp(0, len(self.means) - 1)
        detached = errors.detach().float()
        self._sums[0].index_add_(0, buckets.flatten(), detached.flatten())
        self._sums[1].index_add_(0, buckets.flatten(), torch.ones_like(detached).flatten())
        seen = self.steps > 0
        # A bucket without a mean takes that of this batch.
        here = detached.mean()
        means = torch.where(seen, self.means, here)
        overall = torch.where(seen.any(), self.means.sum() / seen.sum().clamp_min(1), here)
        least = torch.maximum(_LEAST * overall, _LEAST_OF_BATCH * here)
        return errors / torch.maximum(means, least).clamp_min(1e-12)[buckets]

    def end_step(self, processes: Processes) -> None:
        """Update the means with the step's batches of all processes."""
        processes.sum_tensor(self._sums)
        sums, counts = self._sums
        seen = counts > 0
        self.steps += seen
        keep = torch.minimum(torch.full_like(self.means, self.decay), (self.steps - 1) / self.steps.clamp_min(1))
        moved = keep * self.means + (1 - keep) * sums / counts.clamp_min(1)
        self.means.copy_(torch.where(seen, moved, self.means))
        self._sums.zero_()
