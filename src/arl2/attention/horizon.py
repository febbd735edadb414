"""How far back a state reaches: before what it holds is too old, one that was begun later takes its place.

A state is trained on clips of some length. In a stream it would hold what is older than any clip was, and what it then
gives back carries objects away from where they are. With a horizon there are two states: both are written, one is read.
At every half of the horizon the younger one takes the other's place, and an empty one is begun. A block reads a state
of at least half a horizon, together with the block itself at most a whole one; at a stream's start all of the past.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from arl2.errors import ConfigError
from arl2.geometry import FrameRange


def is_renewed(before: int, after: int, horizon: int | None) -> bool:
    """Whether the younger state takes the older one's place when the stream comes from one latent frame to another."""
    return horizon is not None and before // (horizon // 2) != after // (horizon // 2)


def states_read(
    blocks: Sequence[FrameRange],
    start: Tensor,
    horizon: int | None,
    advance: Callable[[FrameRange, Sequence[Tensor]], Sequence[Tensor]],
) -> list[Tensor]:
    """The state that each block of a clip reads, as in streaming; the last block is written for nobody.

    Args:
        blocks: of the clip.
        start: zero.
        horizon: in latent frames; None: a state reaches back to the first frame.
        advance: states after a block was written to each of them.
    """
    states, younger = [start], start
    for block in blocks[:-1]:
        if younger is states[-1]:  # until the first time that one takes the other's place
            (state,) = advance(block, [younger])
            younger = state
        else:
            state, younger = advance(block, [states[-1], younger])
        if is_renewed(block.start, block.stop, horizon):
            state, younger = younger, torch.zeros_like(start)
        states.append(state)
    return states


def check_horizon(horizon: object, block_frames: int) -> None:
    """Refuse what is no horizon of blocks of this length; raises ``ConfigError``."""
    step = 2 * block_frames
    if horizon is None:
        return
    if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < step or horizon % step:
        raise ConfigError(
            f"state_horizon is {horizon!r:.80}; it must be a multiple of two blocks, {step} latent frames, or None for "
            "states that reach back to the first frame."
        )
