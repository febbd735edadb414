"""Both small codecs: streaming equals one shot to the bit, nothing looks ahead, sizes and files are right."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.errors import ConfigError, GeometryError, MemoryMismatchError
from arl2.geometry import latent_frames_of, video_frames_of
from arl2.shapes.codec import GroupCodec
from arl2.video.codec import CodecCache, VideoCodec
from arl2.video.tiny_codec import TinyCodec

MEAN, STD = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 1.5]

# A small TAEHV layout with every part: both time strides, a space stride of 1, folded pixels.
TINY = {
    "patch_size": 2,
    "latent_channels": 4,
    "encoder_widths": [4, 4, 6, 8],
    "decoder_widths": [8, 6, 4, 4],
    "encoder_space": [1, 2, 2],
    "decoder_space": [2, 2, 1],
    "memory_layers": 2,
    "latents_mean": MEAN,
    "latents_std": STD,
}
GROUP = {"latent_channels": 4, "width": 6, "deep_width": 8, "latents_mean": MEAN, "latents_std": STD}


def filled(codec: TinyCodec | GroupCodec) -> TinyCodec | GroupCodec:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.7 / parameter[0].numel() ** 0.5))
    return codec.eval()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


CODECS = [filled(TinyCodec(**TINY)), filled(GroupCodec(**GROUP))]
LATENTS = random(2, 4, 7, 2, 3) * 2
VIDEO = random(2, 3, 25, 16, 24)

both = pytest.mark.parametrize("codec", CODECS, ids=["tiny", "group"])


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    """Lengths that add up to seven latent frames."""
    sizes: list[int] = []
    while sum(sizes) < 7:
        sizes.append(draw(st.integers(1, 7 - sum(sizes))))
    return sizes


@both
@torch.no_grad()
@given(splits())
@settings(max_examples=12, deadline=None)
def test_streaming_decode_is_one_shot_decode(codec: TinyCodec | GroupCodec, sizes: list[int]) -> None:
    cache, parts, first = codec.new_cache(), [], 0
    for block in LATENTS.split(sizes, dim=2):
        parts.append(codec.decode(block, cache))
        assert parts[-1].shape[2] == codec.frames_of(first, block.shape[2])
        first += block.shape[2]
    assert torch.equal(torch.cat(parts, dim=2), codec.decode(LATENTS))


@both
@torch.no_grad()
@given(splits())
@settings(max_examples=12, deadline=None)
def test_streaming_encode_is_one_shot_encode(codec: TinyCodec | GroupCodec, sizes: list[int]) -> None:
    cache, first = codec.new_cache("encoder"), 0
    frames = []
    for latent_frames in sizes:
        frames.append(codec.frames_of(first, latent_frames))
        first += latent_frames
    parts = [codec.encode(piece, cache) for piece in VIDEO.split(frames, dim=2)]
    assert torch.equal(torch.cat(parts, dim=2), codec.encode(VIDEO))


@both
@torch.no_grad()
def test_training_path_equals_streaming_path(codec: TinyCodec | GroupCodec) -> None:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (MEAN, STD))
    raw = codec.encode_parallel(VIDEO)
    torch.testing.assert_close(codec.encode(VIDEO), (raw - mean) / std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codec.decode(LATENTS), codec.decode_parallel(LATENTS * std + mean), rtol=1e-5, atol=1e-5)


@both
@torch.no_grad()
@pytest.mark.parametrize("changed", range(7))
def test_future_latents_do_not_change_past_frames(codec: TinyCodec | GroupCodec, changed: int) -> None:
    other = LATENTS.clone()
    other[:, :, changed:] += 1
    before, after = codec.decode(LATENTS), codec.decode(other)
    known = codec.frames_of(0, changed)
    assert torch.equal(before[:, :, :known], after[:, :, :known])
    assert not torch.equal(before[:, :, known], after[:, :, known])


@both
@torch.no_grad()
@pytest.mark.parametrize("changed", [1, 5, 24])
def test_future_pixels_do_not_change_past_latents(codec: TinyCodec | GroupCodec, changed: int) -> None:
    other = VIDEO.clone()
    other[:, :, changed:] *= -1
    before, after = codec.encode(VIDEO), codec.encode(other)
    known = (changed + 3) // 4
    assert torch.equal(before[:, :, :known], after[:, :, :known])
    assert not torch.equal(before[:, :, known], after[:, :, known])


@both
@torch.no_grad()
def test_a_cloned_cache_is_a_fork_and_a_saved_one_goes_on(codec: TinyCodec | GroupCodec) -> None:
    cache = codec.new_cache()
    codec.decode(LATENTS[:, :, :3], cache)
    fork = cache.clone()
    restored = CodecCache.from_tensors("decoder", {name: x.clone() for name, x in cache.to_tensors().items()})
    rest = codec.decode(LATENTS[:, :, 3:], cache)
    assert torch.equal(rest, codec.decode(LATENTS[:, :, 3:], fork))
    assert torch.equal(rest, codec.decode(LATENTS[:, :, 3:], restored))


@both
@torch.no_grad()
def test_cache_does_not_grow(codec: TinyCodec | GroupCodec) -> None:
    cache = codec.new_cache()
    sizes = []
    for _ in range(3):
        codec.decode(LATENTS, cache)
        # The storage counts: a view of a long clip would keep the whole clip alive.
        sizes.append({name: x.untyped_storage().nbytes() for name, x in cache.features.items()})
    assert sizes[0] == sizes[1] == sizes[2]


def test_frame_counts() -> None:
    assert [video_frames_of(0, n, 4) for n in (0, 1, 3, 21)] == [0, 1, 9, 81]
    assert [video_frames_of(3, n, 4) for n in (0, 1, 3)] == [0, 4, 12]
    assert [latent_frames_of(0, n, 4) for n in (1, 9, 81)] == [1, 3, 21]
    with pytest.raises(GeometryError, match=r"1 \+ 4 n"):
        latent_frames_of(0, 80, 4)
    with pytest.raises(GeometryError, match="multiple of 4"):
        latent_frames_of(2, 5, 4)


@both
def test_mistakes_are_named(codec: TinyCodec | GroupCodec) -> None:
    with pytest.raises(GeometryError, match="multiples of 8"):
        codec.encode(torch.zeros(1, 3, 1, 20, 24))
    with pytest.raises(GeometryError, match="5 channels"):
        codec.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(MemoryMismatchError, match="new_cache"):
        codec.decode(LATENTS, codec.new_cache("encoder"))
    cache = codec.new_cache()
    codec.decode(LATENTS, cache)
    with pytest.raises(MemoryMismatchError, match="new stream"):
        codec.decode(LATENTS[:1], cache)
    with pytest.raises(ConfigError, match="latents_mean has 1 values for 16"):
        type(codec)(latents_mean=[0.0])


def test_a_decoder_that_does_not_undo_the_encoder() -> None:
    with pytest.raises(ConfigError, match="undo"):
        TinyCodec(**{**TINY, "decoder_time": [1, 1, 2]})


@both
@torch.no_grad()
def test_saved_and_loaded_codec_is_the_same(codec: TinyCodec | GroupCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = type(codec).from_pretrained(tmp_path).eval()
    assert isinstance(loaded, VideoCodec)
    assert torch.equal(loaded.decode(LATENTS), codec.decode(LATENTS))


def test_default_sizes_are_the_published_layout() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(x.shape) for name, x in TinyCodec().state_dict().items()}
    assert shapes["encoder.0.weight"] == (64, 3, 3, 3)
    assert shapes["encoder.2.conv.weight"] == (64, 128, 1, 1)
    assert shapes["encoder.12.conv.weight"] == (64, 64, 1, 1)
    assert shapes["encoder.17.weight"] == (16, 64, 3, 3)
    assert shapes["decoder.1.weight"] == (256, 16, 3, 3)
    assert shapes["decoder.3.conv.0.weight"] == (256, 512, 3, 3)
    assert shapes["decoder.7.conv.weight"] == (256, 256, 1, 1)
    assert shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.20.weight"] == (64, 64, 3, 3)
    assert shapes["decoder.22.weight"] == (3, 64, 3, 3)
    assert "encoder.3.bias" not in shapes
    assert "decoder.8.bias" not in shapes
    numbers = sorted({int(name.split(".")[1]) for name in shapes if name.startswith("decoder")})
    assert numbers == [1, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 19, 20, 22]


@pytest.mark.parametrize("kind", [TinyCodec, GroupCodec])
def test_eighty_one_frames_become_twenty_one_latents(kind: type[TinyCodec] | type[GroupCodec]) -> None:
    with torch.device("meta"):
        codec = kind()
        assert codec.encode(torch.zeros(1, 3, 81, 64, 64)).shape == (1, 16, 21, 8, 8)
        assert codec.decode(torch.zeros(1, 16, 21, 8, 8)).shape == (1, 3, 81, 64, 64)


@torch.no_grad()
def test_starting_weights_are_seeded_and_pass_something_on() -> None:
    first, second = GroupCodec(), GroupCodec()
    for codec in (first, second):
        codec.init_weights(torch.Generator().manual_seed(3))
    assert all(torch.equal(x, second.state_dict()[name]) for name, x in first.state_dict().items())
    assert first.encode(VIDEO).std() > 0.01
