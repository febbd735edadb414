"""Noise that belongs to its clip: where the strongest noise of a stream's very first latent frame is, the object is.

A prompt does not say where its object starts. From pure noise a model can then only predict the mean over all places,
which is an empty picture, and a sampler of few levels has no time to make up its mind. If in training the noise of a
clip is moved so that its strongest place is the object's, the noise decides, and the first level already draws the
object there. (Data and noise that are paired, not independent: multisample flow matching, arXiv 2304.14772.)

The marginal of the noise stays what it was: the strongest place of independent noise is as likely anywhere, and moving
a torus of independent numbers leaves them independent. And the rule is the same at every place, which a model that
knows positions by their differences alone (rotary embeddings) needs.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from arl2.shapes.palette import WORLD_SIZE
from arl2.shapes.world import Scenes, trajectory


def paired_noise(
    noise: Float[Tensor, "clips channels frames height width"], places: Int64[Tensor, "clips 2"]
) -> Float[Tensor, "clips channels frames height width"]:
    """``noise``, each clip's moved as a torus so that its strongest place is ``places`` (row, column)."""
    height, width = noise.shape[-2:]
    shifts = (places.to(noise.device) - strongest_places(noise)) % torch.tensor([height, width], device=noise.device)
    rows = (torch.arange(height, device=noise.device) - shifts[:, :1]) % height
    columns = (torch.arange(width, device=noise.device) - shifts[:, 1:]) % width
    clips = torch.arange(len(noise), device=noise.device)[:, None, None]
    moved = noise.permute(0, 3, 4, 1, 2)[clips, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 4, 1, 2)


def strongest_places(noise: Float[Tensor, "clips channels frames height width"]) -> Int64[Tensor, "clips 2"]:
    """Row and column where the sum over channels of the first frame is largest."""
    flat = noise[:, :, 0].sum(1).flatten(1).argmax(1)
    return torch.stack((flat // noise.shape[-1], flat % noise.shape[-1]), dim=1)


def object_places(scenes: Scenes, height: int, width: int) -> Int64[Tensor, "scenes 2"]:
    """Row and column of a ``height x width`` latent that hold the object's middle at video frame 0, or the nearest."""
    x, y = trajectory(scenes, 1)[:, 0].unbind(-1)
    row = (y * height / WORLD_SIZE).floor().clamp(0, height - 1)
    column = (x * width / WORLD_SIZE).floor().clamp(0, width - 1)
    return torch.stack((row, column), dim=1).long()
