"""Batches of the shapes world: what a clip has shown by the end of each block, and which clips are sampled."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load_file

from arl2.errors import ConfigError
from arl2.shapes.codec import GroupCodec
from arl2.shapes.training.latents import encoded_clips
from arl2.shapes.training.scene_clips import SceneClipsConfig, SceneSampler
from arl2.shapes.world.renderer import visible_share
from arl2.shapes.world.scene import BOUNCE, sample_scenes

CODEC = str(files("arl2.shapes") / "weights" / "codec")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in which clips are encoded once for all tests."""
    return str(tmp_path_factory.mktemp("latents"))


def test_a_block_counts_from_when_a_third_of_the_object_has_shown(latents):
    codec = GroupCodec.from_pretrained(CODEC, torch_dtype=torch.float32)
    config = SceneClipsConfig(codec=CODEC, latents=latents, clips=24, clip_frames=9)
    source = SceneSampler(config, codec, block_frames=3, say=lambda line: None)
    clips = source.sample(48, 6, torch.Generator().manual_seed(0))
    shown = clips.shown_by(codec, 3)
    assert shown.shape == (48, 2)
    assert clips.from_start.any()
    assert not clips.from_start.all()
    for clip, start in enumerate(clips.starts.tolist()):
        # The whole scene from its first video frame, of which the clip's begin at its first latent frame's.
        shares = visible_share(clips.scenes.select([clip]), codec.frames_of(0, start + 6))[0]
        first = codec.frames_of(0, start) if start else 0
        for block in range(2):
            so_far = shares[first : codec.frames_of(0, start + 3 * block + 3)]
            assert bool(shown[clip, block]) == bool(so_far.max() >= 0.3)
    assert not shown[:, 0].all(), "no clip begins with its object hidden; the test says nothing"
    assert shown[:, 0].any()


def test_clips_that_begin_hidden_are_sampled_more_often_but_no_first_blocks(latents):
    codec = GroupCodec.from_pretrained(CODEC, torch_dtype=torch.float32)
    config = SceneClipsConfig(codec=CODEC, latents=latents, clips=48, clip_frames=6, bounce_weight=2.0)

    def share_hidden(late_weight: float, frames: int) -> float:
        source = SceneSampler(replace(config, late_weight=late_weight), codec, block_frames=3, say=lambda line: None)
        draw = torch.Generator().manual_seed(0)
        clips = source.source(frames, draw)
        is_hidden = visible_share(clips.scenes, 9)[:, [0, 8]].amax(1) < 0.3
        return float(is_hidden[clips.choose(3000, draw)].float().mean())

    before, after = share_hidden(1.0, 6), share_hidden(5.0, 6)
    assert 0 < before < 1
    assert after == pytest.approx(5 * before / (5 * before + 1 - before), abs=0.04)
    assert share_hidden(5.0, 3) == share_hidden(1.0, 3)
    with pytest.raises(ConfigError, match="late_weight is 0"):
        replace(config, late_weight=0.0)


def test_first_blocks_can_be_those_that_show_their_object(latents):
    codec = GroupCodec.from_pretrained(CODEC, torch_dtype=torch.float32)
    config = SceneClipsConfig(codec=CODEC, latents=latents, clips=48, clip_frames=6)
    chosen = replace(config, opening_shows=0.5)
    every, shown = (SceneSampler(one, codec, block_frames=3, say=lambda line: None) for one in (config, chosen))
    assert 0 < len(shown.openings.scenes) < len(every.openings.scenes)
    assert len(shown.longer.scenes) == len(every.longer.scenes)
    ends = visible_share(shown.sample(64, 3, torch.Generator().manual_seed(0)).scenes, 9)[:, [0, 8]]
    assert (ends.amax(1) >= 0.5).all()
    left_out = [i for i in range(48) if visible_share(every.longer.scenes.select([i]), 9)[0, [0, 8]].max() < 0.5]
    assert len(left_out) == len(every.openings.scenes) - len(shown.openings.scenes)
    with pytest.raises(ConfigError, match="opening_shows is 2"):
        replace(config, opening_shows=2.0)
    seed = next(seed for seed in range(1, 50) if _is_occluded(seed))
    none = replace(config, clips=1, data_seed=seed, opening_shows=1.0)
    with pytest.raises(ConfigError, match="No first block shows 1 of its object"):
        SceneSampler(none, codec, block_frames=3, say=lambda line: None)


def _is_occluded(seed: int) -> bool:
    return float(visible_share(sample_scenes(1, seed=seed), 9)[0, [0, 8]].max()) < 1


def test_what_bounces_is_sampled_more_often(latents):
    codec = GroupCodec.from_pretrained(CODEC, torch_dtype=torch.float32)
    shares = {}
    for weight in (1.0, 4.0):
        config = SceneClipsConfig(codec=CODEC, latents=latents, clips=48, clip_frames=6, bounce_weight=weight)
        source = SceneSampler(config, codec, block_frames=3, say=lambda line: None)
        batch = source.sample(2000, 3, torch.Generator().manual_seed(0))
        shares[weight] = float((batch.scenes.motion == BOUNCE).float().mean())
        there = float((source.openings.scenes.motion == BOUNCE).float().mean())
        assert shares[weight] == pytest.approx(weight * there / (weight * there + 1 - there), abs=0.04)
    assert 0 < shares[1.0] < shares[4.0] < 1
    with pytest.raises(ConfigError, match="bounce_weight is 0"):
        replace(config, bounce_weight=0.0)


def test_no_more_clips_are_encoded_than_are_wanted(tmp_path, monkeypatch):
    """A shard is continued where a run with fewer clips left it; no clip's bits depend on that."""
    monkeypatch.setattr("arl2.shapes.training.latents.SHARD", 16)
    codec, said = GroupCodec.from_pretrained(CODEC, torch_dtype=torch.float32), []

    def clips(folder: str, count: int) -> torch.Tensor:
        return encoded_clips(codec, tmp_path / folder, clips=count, frames=3, seed=1, say=said.append)

    few, more, whole = clips("grown", 3), clips("grown", 20), clips("whole", 20)
    assert [len(one) for one in (few, more, whole)] == [3, 20, 20]
    assert torch.equal(more, whole)
    assert torch.equal(few, whole[:3])
    assert [line.split(";")[0] for line in said[:3]] == [
        f"Encoded {n} of {m} clips" for n, m in ((3, 3), (16, 20), (20, 20))
    ]
    files = sorted((tmp_path / "grown").glob("*/*.safetensors"))
    assert [len(load_file(file)["latents"]) for file in files] == [16, 8]
    said.clear()
    assert torch.equal(clips("grown", 20), whole)
    assert not said
