"""A codec that decodes a stream block by block: time a latent frame, cache, and the same clip by diffusers."""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from arl2.errors import ConfigError
from arl2.evaluation.bench.gate import KERNEL_LIMITS, relative
from arl2.evaluation.bench.models import random_weights
from arl2.evaluation.bench.options import DecodeOptions
from arl2.evaluation.bench.part import Part
from arl2.evaluation.bench.result import Check, Finding, Row
from arl2.evaluation.bench.timing import Lap, Timing
from arl2.video.codec import FRAMES_AT_ONCE, CodecCache
from arl2.video.tiny_codec import TinyCodec
from arl2.video.wan_codec import WanCodec

PUBLISHED_DIM = 96
_OURS, _THEIRS = "ours, block by block", "diffusers, whole clip"


def random_codec(
    name: str, dtype: torch.dtype, device: torch.device | str, *, base_dim: int = PUBLISHED_DIM
) -> WanCodec | TinyCodec:
    """A codec with random weights: the Wan VAE (times ``base_dim`` over 96 in width), or the tiny decoder."""
    with torch.device("meta"):
        vae = AutoencoderKLWan(base_dim=base_dim) if name == "wan" else None
        tiny = TinyCodec() if vae is None else None
    if tiny is not None:
        return random_weights(tiny, device, dtype=dtype)
    assert vae is not None
    return WanCodec(random_weights(vae, device, dtype=dtype)).to(device).eval()


class DecodePart(Part[DecodeOptions]):
    """See the module."""

    def __init__(self, options: DecodeOptions) -> None:
        super().__init__(options)
        for name in ("height", "width"):
            pixels = getattr(options, name)
            if pixels % 8:
                raise ConfigError(
                    f"The {name} is a multiple of 8 pixels; got {pixels}, use {max(8, pixels // 8 * 8)} for example."
                )
        self._laps: dict[str, list[Lap]] = {_OURS: [], _THEIRS: []}
        self._steady: list[Lap] = []
        self._cache_bytes = 0
        self._codec = random_codec(options.codec, self.dtype, self.device, base_dim=options.base_dim)

    @torch.no_grad()
    def gate(self) -> Iterator[Check]:
        codec, latents = self._codec, self._latents(2 * FRAMES_AT_ONCE, 2, 2)
        cache = codec.new_cache()
        streamed = torch.cat([codec.decode(one, cache) for one in latents.split(1, dim=2)], dim=2)
        at_once = codec.decode(latents)
        # Another split sums convolutions in another order.
        limit = 4 * KERNEL_LIMITS[self.dtype]
        yield Check("decode frame by frame against at once", relative(streamed, at_once), limit)
        if isinstance(codec, WanCodec):
            theirs = self._by_diffusers(codec, latents)
            yield Check("decode against diffusers", relative(at_once.clamp(-1, 1), theirs), limit)

    @torch.no_grad()
    def measure(self) -> Iterator[str]:
        codec = self._codec
        frames = self.options.blocks * FRAMES_AT_ONCE
        latents = self._latents(frames, self.options.height // 8, self.options.width // 8)
        for repeat in range(-1, self.options.repeats):  # the first is a warm-up
            cache = codec.new_cache()
            laps = [self._time_block(block, cache) for block in latents.split(FRAMES_AT_ONCE, dim=2)]
            self._cache_bytes = sum(x.nbytes for x in cache.features.values())
            if repeat >= 0:
                self._laps[_OURS].append(Lap(*(sum(times) for times in zip(*laps, strict=True))))
                # The first block has fewer video frames, and no cache to read.
                self._steady += [Lap(*(seconds / FRAMES_AT_ONCE for seconds in lap)) for lap in laps[1:]]
            yield f"round {repeat + 1}: {_OURS}"
            if isinstance(codec, WanCodec):
                lap = self.watch.time(lambda: self._by_diffusers(codec, latents))
                if repeat >= 0:
                    self._laps[_THEIRS].append(lap)
                yield f"round {repeat + 1}: {_THEIRS}"

    def rows(self) -> Iterator[Row]:
        for name, laps in self._laps.items():
            if laps:
                values: dict[str, Timing | int] = {"clip_seconds": Timing(tuple(laps))}
                if name == _OURS:
                    if self._steady:
                        values["latent_frame_seconds"] = Timing(tuple(self._steady))
                    values["cache_bytes"] = self._cache_bytes
                    if self.device.type == "cuda":
                        values["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
                yield Row(name, values)

    def findings(self) -> Iterator[Finding]:
        ours, theirs = (Timing(tuple(self._laps[name])) for name in (_OURS, _THEIRS))
        if ours.laps and theirs.laps:
            yield Finding(
                "decoding against diffusers",
                theirs.median / ours.median,
                "times",
                min(theirs.runs) / max(ours.runs),
                max(theirs.runs) / min(ours.runs),
            )

    def _time_block(self, block: Tensor, cache: CodecCache) -> Lap:
        return self.watch.time(lambda: self._codec.decode(block, cache))

    def _latents(self, frames: int, height: int, width: int) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        shape = (1, self._codec.latent_channels, frames, height, width)
        return torch.randn(shape, generator=draw).to(self.device, self.dtype)

    def _by_diffusers(self, codec: WanCodec, latents: Tensor) -> Tensor:
        config = codec.vae.config
        mean, std = (
            torch.tensor(x, device=self.device).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std)
        )
        return codec.vae.decode((latents.float() * std + mean).to(self.dtype)).sample
