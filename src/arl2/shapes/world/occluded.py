"""Scenes to learn memory from: the object is occluded for a while, and the caption leaves its colour out.

A model can only bring the colour back from memory: the prompt does not help.
"""

from dataclasses import fields, replace

import torch

from arl2.errors import Arl2Error
from arl2.shapes.world.curtain import sample_occlusions
from arl2.shapes.world.scene import Range, Scenes, sample_scenes

# Scenes of one kind in a row; the rows go through the kinds.
RUN = 8
# Standing walls take scenes beyond those that ordinary clips use of the seed's sequence.
_BEYOND = 2**32
# How much wider than the object standing walls are.
SPARES: tuple[Range, ...] = ((4.0, 8.0), (5.0, 12.0), (4.8, 8.4))
# Video frames of the occlusion by a moving curtain, and those before.
CURTAINS: tuple[tuple[int, int], ...] = ((6, 20), (10, 28), (16, 24), (24, 27), (36, 25), (48, 25))


def sample_occluded_scenes(count: int, *, seed: int, first: int = 0) -> Scenes:
    """Scenes ``first`` to ``first + count - 1`` of the sequence of ``seed``: half standing walls, half curtains.

    Arguments as for ``sample_scenes``.

    Raises:
        Arl2Error: ``count`` or ``first`` is no multiple of ``RUN``, or below 0.
    """
    if count < RUN or first < 0 or count % RUN or first % RUN:
        raise Arl2Error(f"Got {count} occluded scenes from number {first}; give multiples of {RUN}.")
    parts = [_run(number, seed) for number in range(first // RUN, (first + count) // RUN)]
    joined = Scenes(**{field.name: torch.cat([getattr(one, field.name) for one in parts]) for field in fields(Scenes)})
    return replace(joined, hides_colour=torch.ones_like(joined.hides_colour))


def _run(number: int, seed: int) -> Scenes:
    kind, odd = divmod(number, 2)
    if odd:
        hidden, lead = CURTAINS[kind % len(CURTAINS)]
        # Curtains have no `first`: every run takes a seed of its own.
        return sample_occlusions(RUN, seed=seed * 2**20 + number, hidden=hidden, lead=lead)
    return sample_scenes(
        RUN, seed=seed, first=_BEYOND + number * RUN, wall_probability=1.0, wall_spare_range=SPARES[kind % len(SPARES)]
    )
