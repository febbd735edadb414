"""The Wan codec: the numbers of diffusers, however a stream is cut; the same bits for the same cuts; constant memory.

Convolutions of one latent frame and of three are summed in another order, so two splits of a stream agree within
``ROUNDING`` and not to the bit; the limit is that of ours against diffusers.
"""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from arl2.errors import ConfigError, GeometryError, MemoryMismatchError
from arl2.video.codec import CodecCache, Side, VideoCodec
from arl2.video.wan_codec import WanCodec
from arl2.video.wan_streaming import names_of
from support import ROUNDING, relative
from video.tiny_wan import MEAN, SMALLEST, STD, narrow_vae, tiny_vae

FRAMES = 5
LATENTS = torch.randn(2, 4, FRAMES, 2, 3, generator=torch.Generator().manual_seed(1))
VIDEO = torch.rand(2, 3, 17, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1

CODEC = WanCodec(tiny_vae())
with torch.no_grad():
    DECODED, ENCODED = CODEC.decode(LATENTS), CODEC.encode(VIDEO)

sides = pytest.mark.parametrize("side", ["decoder", "encoder"])


def statistics(channels_mean: list[float], channels_std: list[float]) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (channels_mean, channels_std))
    return mean, std


def cuts(sizes: list[int]) -> list[tuple[int, int]]:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return list(pairwise(ends))


def run(side: Side, cache: CodecCache, start: int, stop: int, codec: WanCodec = CODEC) -> Tensor:
    """Latent frames ``[start, stop)`` of the clip, in the direction asked for."""
    if side == "decoder":
        return codec.decode(LATENTS[:, :, start:stop], cache)
    first, last = (codec.frames_of(0, frames) for frames in (start, stop))
    return codec.encode(VIDEO[:, :, first:last], cache)


def whole(side: Side) -> Tensor:
    return DECODED if side == "decoder" else ENCODED


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    """Lengths that add up to the clip."""
    sizes: list[int] = []
    while sum(sizes) < FRAMES:
        sizes.append(draw(st.integers(1, FRAMES - sum(sizes))))
    return sizes


def test_it_is_a_video_codec() -> None:
    assert isinstance(CODEC, VideoCodec)
    assert (CODEC.latent_channels, CODEC.spatial_factor, CODEC.temporal_factor) == (4, 8, 4)
    assert (CODEC.frames_of(0, 3), CODEC.frames_of(3, 3)) == (9, 12)
    assert DECODED.shape == VIDEO.shape
    assert ENCODED.shape == LATENTS.shape


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_shot_is_diffusers(dtype: torch.dtype) -> None:
    vae = copy.deepcopy(CODEC.vae)
    codec = WanCodec(vae).to(dtype=dtype)
    assert codec.dtype == dtype
    mean, std = statistics(MEAN, STD)
    decoded, encoded = codec.decode(LATENTS), codec.encode(VIDEO)
    assert (decoded.dtype, encoded.dtype) == (dtype, dtype)
    assert relative(decoded.clamp(-1, 1), vae.decode((LATENTS * std + mean).to(dtype)).sample) < ROUNDING[dtype]
    mode = vae.encode(VIDEO.to(dtype)).latent_dist.mode()
    assert relative(encoded, (mode.float() - mean) / std) < ROUNDING[dtype]
    assert decoded.abs().max() > 1


@torch.no_grad()
def test_one_shot_is_diffusers_at_published_depth() -> None:
    vae = narrow_vae()
    codec = WanCodec(vae)
    mean, std = statistics(list(vae.config.latents_mean), list(vae.config.latents_std))
    latents = torch.randn(1, 16, 3, 2, 3, generator=torch.Generator().manual_seed(1))
    theirs = vae.decode(latents * std + mean).sample
    assert relative(codec.decode(latents).clamp(-1, 1), theirs) < ROUNDING[torch.float32]
    mode = vae.encode(VIDEO[:, :, :9]).latent_dist.mode()
    assert relative(codec.encode(VIDEO[:, :, :9]), (mode - mean) / std) < ROUNDING[torch.float32]


@torch.no_grad()
def test_half_precision_shows_what_float32_shows() -> None:
    """At least 50 dB for values from -1 to 1, at the published depth."""
    vae = narrow_vae()
    half = WanCodec(copy.deepcopy(vae)).to(dtype=torch.bfloat16)
    latents = torch.randn(1, 16, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    error = half.decode(latents).float().clamp(-1, 1) - WanCodec(vae).decode(latents).clamp(-1, 1)
    assert 10 * torch.log10(4 / error.square().mean()) >= 50


@sides
@torch.no_grad()
@given(splits())
@settings(max_examples=8, deadline=None)
def test_any_split_is_one_shot(side: Side, sizes: list[int]) -> None:
    parts = []
    for _ in range(2):
        cache = CODEC.new_cache(side)
        parts.append(torch.cat([run(side, cache, start, stop) for start, stop in cuts(sizes)], dim=2))
        assert cache.latent_frames == FRAMES
    assert torch.equal(*parts)
    assert relative(parts[0], whole(side)) < ROUNDING[torch.float32]


@sides
@torch.no_grad()
@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_stream_is_forked_and_saved(side: Side, before: int, tmp_path: Path) -> None:
    """Also after its first frame, when the layers that change the rate of time remember that they have begun."""
    cache = CODEC.new_cache(side)
    run(side, cache, 0, before)
    fork = cache.clone()
    save_file(cache.to_tensors(), tmp_path / "cache.safetensors")
    rest = run(side, cache, before, FRAMES)
    restored = CodecCache.from_tensors(side, load_file(tmp_path / "cache.safetensors"))
    assert torch.equal(rest, run(side, fork, before, FRAMES))
    assert torch.equal(rest, run(side, restored, before, FRAMES))
    assert relative(rest, whole(side)[:, :, -rest.shape[2] :]) < ROUNDING[torch.float32]


def layout_1(side: Side, before: int) -> CodecCache:
    """The cache of earlier versions: diffusers' own network, latent frame by latent frame, and its feature list."""
    network = CODEC.vae.decoder if side == "decoder" else CODEC.vae.encoder
    mean, std = statistics(MEAN, STD)
    raw = CODEC.vae.post_quant_conv(LATENTS * std + mean)
    features: list[Any] = [None] * len(names_of(network))
    for frame in range(before):
        if side == "decoder":
            network(raw[:, :, frame : frame + 1], feat_cache=features, feat_idx=[0], first_chunk=frame == 0)
        else:
            first, last = CODEC.frames_of(0, frame), CODEC.frames_of(0, frame + 1)
            network(VIDEO[:, :, first:last], feat_cache=features, feat_idx=[0])
    # The mark "Rep" of a layer that doubles time was kept as an empty tensor.
    named = {f"slot.{i:02d}": x if isinstance(x, Tensor) else torch.empty(0) for i, x in enumerate(features)}
    return CodecCache(side, before, named)


@sides
@torch.no_grad()
@pytest.mark.parametrize("before", [1, 2, 4])
def test_a_cache_of_an_earlier_version_is_converted(side: Side, before: int) -> None:
    old = layout_1(side, before)
    assert "layout" not in old.to_tensors()
    restored = CodecCache.from_tensors(side, old.to_tensors())
    rest = run(side, restored, before, FRAMES)
    assert relative(rest, whole(side)[:, :, -rest.shape[2] :]) < ROUNDING[torch.float32]
    assert CodecCache.from_tensors(side, restored.to_tensors()).layout == CODEC.new_cache(side).layout == 2


@sides
@torch.no_grad()
def test_a_cache_of_a_later_version_is_refused(side: Side) -> None:
    cache = CODEC.new_cache(side)
    run(side, cache, 0, 1)
    later = CodecCache.from_tensors(side, cache.to_tensors() | {"layout": torch.tensor(3)})
    with pytest.raises(MemoryMismatchError, match="has layout 3, but this codec reads layouts up to 2"):
        run(side, later, 1, 2)


@sides
@torch.no_grad()
def test_cache_does_not_grow(side: Side) -> None:
    cache = CODEC.new_cache(side)
    sizes = []
    for frame in range(FRAMES):
        run(side, cache, frame, frame + 1)
        # The storage counts: a view of a long clip would keep the whole clip alive.
        sizes.append({name: x.untyped_storage().nbytes() for name, x in cache.features.items()})
    assert sizes[0] == sizes[1] == sizes[2] == sizes[3] == sizes[4]
    at_once = CODEC.new_cache(side)
    run(side, at_once, 0, FRAMES)
    assert {name: x.untyped_storage().nbytes() for name, x in at_once.features.items()} == sizes[-1]


@torch.no_grad()
def test_two_streams_do_not_mix() -> None:
    caches = [CODEC.new_cache(), CODEC.new_cache()]
    parts: list[list[Tensor]] = [[], []]
    for frame in range(FRAMES):
        for stream, latents in enumerate((LATENTS, LATENTS.flip(2))):
            parts[stream].append(CODEC.decode(latents[:, :, frame : frame + 1], caches[stream]))
    for latents, mixed in zip((LATENTS, LATENTS.flip(2)), parts, strict=True):
        alone = CODEC.new_cache()
        assert torch.equal(torch.cat(mixed, dim=2), torch.cat([CODEC.decode(x, alone) for x in latents.split(1, 2)], 2))


@torch.no_grad()
@pytest.mark.parametrize("changed", range(FRAMES))
def test_the_future_does_not_change_the_past(changed: int) -> None:
    other = LATENTS.clone()
    other[:, :, changed:] += 1
    known = CODEC.frames_of(0, changed)
    after = CODEC.decode(other)
    assert torch.equal(DECODED[:, :, :known], after[:, :, :known])
    assert not torch.equal(DECODED[:, :, known], after[:, :, known])


def test_gradients_stay_within_a_call() -> None:
    latents = LATENTS[:1, :, :3].clone().requires_grad_()
    cache = CODEC.new_cache()
    CODEC.decode(latents, cache)[:, :, -1].sum().backward()
    gradient = latents.grad
    assert gradient is not None
    assert bool((gradient[:, :, 0] != 0).any()), "the last frame depends on the first"
    assert not any(x.requires_grad for x in cache.features.values())


@torch.no_grad()
def test_a_cache_after_an_error_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CODEC.new_cache()
    CODEC.decode(LATENTS, cache)
    saved = cache.clone()

    def fails(*arguments: Any, **options: Any) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", fails)  # after the first upsampling: some layers have gone on
        with pytest.raises(RuntimeError, match="out of memory"):
            CODEC.decode(LATENTS, cache)
    with pytest.raises(MemoryMismatchError, match="begin a new stream, or continue from a clone"):
        CODEC.decode(LATENTS, cache)
    assert CODEC.decode(LATENTS, saved).isfinite().all()


@torch.no_grad()
def test_mistakes_are_named() -> None:
    with pytest.raises(GeometryError, match="multiples of 8"):
        CODEC.encode(torch.zeros(1, 3, 1, 20, 24))
    with pytest.raises(GeometryError, match=r"1 \+ 4 n"):
        CODEC.encode(VIDEO[:, :, :4])
    with pytest.raises(GeometryError, match="5 channels"):
        CODEC.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(GeometryError, match="one latent frame or more"):
        CODEC.decode(LATENTS[:, :, :0])
    with pytest.raises(MemoryMismatchError, match=r"new_cache\('decoder'\)"):
        CODEC.decode(LATENTS, CODEC.new_cache("encoder"))
    with pytest.raises(MemoryMismatchError, match=r"new_cache\('encoder'\)"):
        CODEC.encode(VIDEO, CODEC.new_cache())


@sides
@torch.no_grad()
def test_a_cache_of_something_else_is_refused(side: Side) -> None:
    cache = CODEC.new_cache(side)
    run(side, cache, 0, 2)
    before = {name: x.clone() for name, x in cache.features.items()}
    other = copy.deepcopy(CODEC).to(dtype=torch.bfloat16)
    with pytest.raises(MemoryMismatchError, match=r"torch\.float32, but the codec computes in torch\.bfloat16"):
        run(side, cache, 2, 3, codec=other)
    one_sample = (LATENTS[:1], VIDEO[:1, :, 1:])[side == "encoder"]
    with pytest.raises(MemoryMismatchError, match="new stream"):
        (CODEC.encode if side == "encoder" else CODEC.decode)(one_sample, cache)
    # A refusal changes nothing.
    assert all(torch.equal(x, before[name]) for name, x in cache.features.items())
    deeper = WanCodec(tiny_vae(**{**SMALLEST, "num_res_blocks": 2}))
    with pytest.raises(MemoryMismatchError, match="of another codec"):
        run(side, cache, 2, 3, codec=deeper)
    del cache.features["slot.03"]
    with pytest.raises(MemoryMismatchError, match="features"):
        run(side, cache, 2, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"is_residual": True}, "is_residual"),
        ({"patch_size": 2, "in_channels": 12, "out_channels": 12}, "patch_size"),
        ({"latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std"),
        ({"latents_mean": [0.0]}, "latents_mean"),
    ],
)
def test_another_kind_of_vae_is_refused(changes: dict, said: str) -> None:
    with torch.device("meta"):
        vae = AutoencoderKLWan(**{**SMALLEST, **changes})
    with pytest.raises(ConfigError, match=f"has {said} = .*, which no Wan 2.1 VAE has"):
        WanCodec(vae)
