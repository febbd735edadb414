"""Noise that belongs to its clip: a stream's first noise leans towards the object that it will become.

A prompt does not say where its object starts. From pure noise a model can then only predict the mean over all places,
which is an empty picture, and a sampler of few levels has no time to make up its mind. If in training the pure noise of
a clip leans a little towards the clip's own object, as some place of any noise does by chance, the noise decides, and
the first level already draws the object there. (Data and noise that are paired, not independent: multisample flow
matching, arXiv 2304.14772; here the pairing is by the object alone.)

Of all places where an object could be, the one that plain noise resembles most it resembles by 2 to 3 standard
deviations. So that is how far paired noise leans: along one direction of thousands, by no more than plain noise has.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arl2.shapes.world.palette import WORLD_SIZE
from arl2.shapes.world.scene import Scenes, trajectory

# How far plain noise leans towards the likeliest of some 60 places that an object does not share, and how much that
# varies: the largest of 60 standard normal draws.
LEAN, LEAN_SPREAD = 2.3, 0.4
_MARGIN = 6.0  # world pixels around the object in which latents feel it


def paired_noise(
    noise: Float[Tensor, "clips channels frames height width"],
    clean: Float[Tensor, "clips channels frames height width"],
    near: Bool[Tensor, "clips frames height width"],
    generator: torch.Generator,
) -> Float[Tensor, "clips channels frames height width"]:
    """``noise`` with its part along the clip's object set to ``LEAN``, give or take ``LEAN_SPREAD``.

    Args:
        noise: standard normal.
        clean: latents of the clips.
        near: where the object is; a clip that never shows it keeps its noise.
        generator: of the lean.
    """
    background = clean.flatten(2).median(-1).values[..., None, None, None]
    content = (clean - background) * near[:, None]
    size = content.flatten(1).norm(dim=1)
    lean = LEAN + LEAN_SPREAD * torch.randn(len(noise), generator=generator)
    shown = size > 1.0
    direction = content / size.clamp_min(1.0)[:, None, None, None, None]
    has = (noise * direction).flatten(1).sum(1)
    change = torch.where(shown, lean - has, torch.zeros_like(has))
    return noise + change[:, None, None, None, None] * direction


def near_object(
    scenes: Scenes, frames: int, height: int, width: int, *, temporal_factor: int
) -> Bool[Tensor, "scenes frames height width"]:
    """Which cells of the first ``frames`` latent frames have the object in or near them, walls not regarded."""
    video_frames = 1 + temporal_factor * (frames - 1)
    path = trajectory(scenes, video_frames)
    rows = (torch.arange(height) + 0.5) * WORLD_SIZE / height
    columns = (torch.arange(width) + 0.5) * WORLD_SIZE / width
    away = torch.hypot(columns - path[..., 0, None, None], rows[:, None] - path[..., 1, None, None])
    near = away < (scenes.radius + _MARGIN)[:, None, None, None]
    later = near[:, 1:].unflatten(1, (-1, temporal_factor)).any(2) if frames > 1 else near[:, :0]
    return torch.cat((near[:, :1], later), dim=1)
