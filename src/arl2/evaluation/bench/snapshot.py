"""Saving, loading and forking a live stream, light and exact, at the sizes of a preset.

Memory and latents are random numbers; the transformer never runs. What a resumed stream computes besides (the prompt's
keys and values, cache-update passes over the window after a light snapshot) is not in these times.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from arl2.attention.memory import Memory
from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.evaluation.bench.decode import random_codec
from arl2.evaluation.bench.models import ModelSize, hybrid_plan, random_model
from arl2.evaluation.bench.options import SnapshotOptions
from arl2.evaluation.bench.part import Part
from arl2.evaluation.bench.result import Check, Row, Value
from arl2.evaluation.bench.timing import Lap, Timing
from arl2.files.places import check_place
from arl2.geometry import FrameRange
from arl2.model.transformer import CausalWanTransformer3DModel, PromptCache
from arl2.rollout.denoise import Prompted, Rollout
from arl2.rollout.noise import SeededNoise
from arl2.rollout.samplers import FewStep
from arl2.rollout.settings import GenerationSettings, RolloutSettings
from arl2.streams.components import Components
from arl2.streams.model_hash import parts_hash
from arl2.streams.recent import LatentBlock, Prompts, Recent
from arl2.streams.request import MemoryShape
from arl2.streams.snapshot_file import read_snapshot
from arl2.streams.state import SnapshotKind, StreamConfig, StreamState
from arl2.streams.stream import Stream
from arl2.text.words import WordText
from arl2.video.codec import CodecCache
from arl2.video.wan_codec import WanCodec

_KINDS: tuple[SnapshotKind, ...] = get_args(SnapshotKind)
_BLOCKS = 10  # that the stream has made


@dataclass(frozen=True)
class Live:
    """A stream in mid-course, and what it is made of."""

    stream: Stream
    model: CausalWanTransformer3DModel
    memory: Memory
    shape: MemoryShape
    codec: WanCodec
    decoder_bytes: int


@dataclass
class _Measured:
    """Of one model."""

    laps: dict[str, list[Lap]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    memory_bytes: int = 0
    decoder_bytes: int = 0


class SnapshotPart(Part[SnapshotOptions]):
    """See the module."""

    def __init__(self, options: SnapshotOptions) -> None:
        super().__init__(options)
        self.size = ModelSize.of(options)
        self.plans = {
            "hybrid, window in the rest": hybrid_plan(self.size.layers, options.hybrid_share),
            "all hybrid": "H" * self.size.layers,
        }
        if options.folder is not None:
            check_place(options.folder / "light.arl2", "snapshot")
        self._measured: dict[str, _Measured] = {}

    def gate(self) -> Iterator[Check]:
        size = ModelSize.of(SnapshotOptions(preset="tiny"))
        live = live_stream(size, "HS", self.dtype, self.device, window=6, vae=True)
        with tempfile.TemporaryDirectory() as folder, live.stream:
            for kind in _KINDS:
                path = Path(folder) / f"{kind}.arl2"
                live.stream.save(path, kind)
                memory = bring_back(path, live, kind)
                ours = memory.fingerprint() if kind == "exact" else _sum_of(memory.states())
                theirs = live.memory.fingerprint() if kind == "exact" else _sum_of(live.memory.states())
                yield Check(f"{kind} snapshot, what is remembered", float(ours != theirs), 0.0)
            before = live.memory.fingerprint()
            with live.stream.fork() as fork:
                fork.latents_next()
            yield Check("a fork leaves the stream alone", float(live.memory.fingerprint() != before), 0.0)

    def measure(self) -> Iterator[str]:
        for name, plan in self.plans.items():
            window = self.options.window if "S" in plan else None
            live = live_stream(self.size, plan, self.dtype, self.device, window=window, vae=self.options.vae)
            found = self._measured[name] = _Measured(memory_bytes=live.memory.nbytes, decoder_bytes=live.decoder_bytes)
            with tempfile.TemporaryDirectory(dir=self.options.folder) as folder, live.stream:
                yield from self._timed(name, live, Path(folder), found)

    def rows(self) -> Iterator[Row]:
        for name, found in self._measured.items():
            laps = {what: Timing(tuple(all_laps)) for what, all_laps in found.laps.items() if all_laps}
            for kind in _KINDS:
                values: dict[str, Value] = {
                    f"{what}_seconds": laps[f"{what} {kind}"] for what in ("save", "load") if f"{what} {kind}" in laps
                }
                if kind in found.sizes:
                    yield Row(f"{name}, {kind}", {"file_bytes": found.sizes[kind], **values})
            if "fork" in laps and "hash" in laps:
                once: dict[str, Value] = {"fork_seconds": laps["fork"], "hash_seconds": laps["hash"]}
                sizes = {"memory_bytes": found.memory_bytes, "decoder_bytes": found.decoder_bytes}
                yield Row(f"{name}, the stream", once | sizes)

    def notes(self) -> Iterator[str]:
        yield (
            "fork: states are copied, windows are shared until one side writes. hash: of the model, once a stream. "
            "decoder_bytes: the decoder's cache of the Wan VAE, which an exact snapshot "
            + ("holds here." if self.options.vae else "also holds; not here (--vae).")
        )

    def _timed(self, name: str, live: Live, folder: Path, found: _Measured) -> Iterator[str]:
        paths = {kind: folder / f"{kind}.arl2" for kind in _KINDS}
        runs: dict[str, Callable[[], object]] = {}
        for kind, path in paths.items():
            runs[f"save {kind}"] = lambda path=path, kind=kind: live.stream.save(path, kind)  # type: ignore[misc]
            runs[f"load {kind}"] = lambda path=path, kind=kind: bring_back(path, live, kind)  # type: ignore[misc]
        runs["fork"] = lambda: live.stream.fork().close()
        runs["hash"] = lambda: parts_hash(live.model, live.codec)
        found.laps |= {what: [] for what in runs}
        for what, lap in self.watch.interleaved(runs, repeats=self.options.repeats):
            found.laps[what].append(lap)
            found.sizes = {kind: path.stat().st_size for kind, path in paths.items() if path.exists()}
            yield f"{name}: {what}"


def live_stream(
    size: ModelSize,
    plan: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    window: int | None,
    vae: bool,
) -> Live:
    """A stream that has made some blocks, as far as its memory tells."""
    model = random_model(size.config(plan, window=window), dtype, device)
    shape = MemoryShape(1, size.height, size.width, window, 0, "absolute")
    memory = shape.allocate(model)
    block = memory.geometry.block_frames
    memory.fill_random(_BLOCKS * block)
    schedule = NoiseSchedule()
    sampler = FewStep(StepPlan.from_steps((1000, 500), schedule=schedule), schedule)
    draw = torch.Generator(device).manual_seed(1)
    text = torch.randn(1, model.config.text_len, model.config.text_dim, generator=draw, device=device).to(dtype)
    with torch.no_grad():
        prompt: PromptCache = model.prompt_context(text)
    rollout = Rollout(
        model,
        [Prompted(prompt, text, memory)],
        noise=SeededNoise([0]),
        settings=RolloutSettings(sampler, size.height, size.width),
    )
    recent = Recent.of_window(window, 0)
    for start in range(0, memory.frames, block):
        shape_of_block = (1, model.config.in_channels, block, size.height, size.width)
        latents = torch.randn(shape_of_block, generator=draw, device=device)
        recent = recent.with_block(LatentBlock(FrameRange(start, start + block), latents))
    decoder, decoder_bytes = _decoder_cache(size, dtype, device, fill=vae)
    state = StreamState(
        rollout=rollout,
        seeds=(0,),
        prompts=Prompts("a prompt", (text,)),
        recent=recent,
        decoder=decoder,
        decoded=rollout.next_block()[0],
    )
    # A small text part and a narrow VAE stand for what is not measured.
    codec = random_codec("wan", dtype, device, base_dim=4)
    assert isinstance(codec, WanCodec)
    parts = Components(model, codec, WordText.build(["a", "prompt"]), GenerationSettings(window=window))
    return Live(Stream(StreamConfig(parts, shape, None, 8, "light"), state), model, memory, shape, codec, decoder_bytes)


def bring_back(path: Path, live: Live, kind: SnapshotKind) -> Memory:
    """Read a file, checksum and all, and fill a new memory from it."""
    metadata, tensors = read_snapshot(path)
    memory = live.shape.allocate(live.model)
    if kind == "exact":
        memory.restore(_under("memory.0.", tensors), metadata["memories"][0])
    else:
        memory.begin_at(metadata["frames"])
        memory.restore_states(_under("states.0.", tensors))
    return memory


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _sum_of(states: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: state.cpu().tolist() for name, state in states.items()}


def _decoder_cache(size: ModelSize, dtype: torch.dtype, device: torch.device, *, fill: bool) -> tuple[CodecCache, int]:
    """The cache of the full VAE's decoder in mid-stream, and its bytes; without ``fill`` it is empty.

    Its shapes come from the meta device: nothing is decoded.
    """
    with torch.device("meta"), torch.no_grad():
        codec = WanCodec(AutoencoderKLWan().eval()).to(dtype)
        cache = codec.new_cache()
        codec.decode(torch.zeros(1, codec.latent_channels, 3, size.height, size.width, dtype=dtype), cache)
    nbytes = sum(x.nbytes for x in cache.features.values())
    draw = torch.Generator(device).manual_seed(2)
    features = {}
    if fill:
        for name, x in cache.features.items():
            features[name] = torch.randn(x.shape, generator=draw, device=device, dtype=x.dtype)
    return CodecCache("decoder", cache.latent_frames, features, cache.layout), nbytes
