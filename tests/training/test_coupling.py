"""Paired noise: it leans towards the object by as much as plain noise does somewhere, and is plain noise elsewhere."""

import torch

from arl2.shapes.training.coupling import LEAN, LEAN_SPREAD, near_object, paired_noise
from arl2.shapes.world.renderer import render, visible_share
from arl2.shapes.world.scene import sample_scenes


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_only_the_part_along_the_object_changes():
    draw = generator(0)
    noise = torch.randn(400, 4, 2, 5, 5, generator=draw)
    clean = torch.zeros_like(noise)
    near = torch.zeros(400, 2, 5, 5, dtype=torch.bool)
    near[:, :, 1:3, 2:4] = True
    clean[:, :, :, 1:3, 2:4] = torch.randn(400, 4, 2, 2, 2, generator=draw) + 3
    paired = paired_noise(noise, clean, near, generator(1))
    change = (paired - noise).flatten(1)
    assert torch.equal(paired[:, :, :, 3:], noise[:, :, :, 3:])
    direction = torch.nn.functional.normalize(clean.flatten(1), dim=1)
    torch.testing.assert_close(change, (change * direction).sum(1, keepdim=True) * direction, atol=1e-5, rtol=1e-4)
    lean = (paired.flatten(1) * direction).sum(1)
    assert abs(lean.mean() - LEAN) < 0.1
    assert abs(lean.std() - LEAN_SPREAD) < 0.05


def test_a_clip_that_does_not_show_its_object_keeps_its_noise():
    noise = torch.randn(3, 4, 2, 5, 5, generator=generator(0))
    flat = torch.full_like(noise, 0.7)
    near = torch.ones(3, 2, 5, 5, dtype=torch.bool)
    assert torch.equal(paired_noise(noise, flat, near, generator(1)), noise)


def test_near_is_where_the_renderer_draws_the_object():
    scenes = sample_scenes(60, seed=1, wall_probability=0.0)
    near = near_object(scenes, 3, 8, 8, temporal_factor=4)
    video = render(scenes, 9)
    background = video.flatten(2).median(-1).values[..., None, None, None]
    drawn = ((video - background).abs().sum(1) > 0.2).float()
    cells = torch.nn.functional.avg_pool3d(drawn[:, None, 1:], (4, 8, 8))[:, 0] > 0.15
    first = torch.nn.functional.avg_pool2d(drawn[:, :1], 8) > 0.15
    shown = torch.cat((first, cells), dim=1)
    assert (visible_share(scenes, 9) > 0.5).any(1).sum() > 40
    assert not (shown & ~near).any()
    assert near.float().mean() < 0.35
