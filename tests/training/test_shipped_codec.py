"""The embedded codec that ships: sizes, scores on held-out clips, and latents fit for diffusion."""

from pathlib import Path

import pytest
import torch

import arl2.shapes
from arl2.shapes.codec import GroupCodec
from arl2.shapes.training.codec import psnr
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import sample_scenes

FOLDER = Path(arl2.shapes.__file__).parent / "weights" / "codec"


@pytest.fixture(scope="module")
def codec() -> GroupCodec:
    return GroupCodec.from_pretrained(FOLDER, torch_dtype=torch.float32, use_safetensors=True).eval()


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6


@torch.no_grad()
def test_scores_on_held_out_clips(codec: GroupCodec) -> None:
    video = render(sample_scenes(6, seed=2**40), 33)
    latents = codec.encode(video)
    assert latents.shape == (6, 16, 9, 8, 8)
    decoded = codec.decode(latents).clamp(-1, 1)
    assert psnr(decoded, video) > 31.0
    assert psnr(decoded.diff(dim=2), video.diff(dim=2)) > 29.0


@torch.no_grad()
def test_latents_have_unit_variance(codec: GroupCodec) -> None:
    latents = codec.encode(render(sample_scenes(48, seed=9), 17))
    # One channel is the brightness of the background, so its mean moves with the draw of scenes.
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.5
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.3
