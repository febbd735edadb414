"""A stream from a snapshot: the content is checked against the model, then memory is filled."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from torch import Tensor

from arl2.attention.plan import SINK_POSITIONS
from arl2.errors import Arl2Error, SnapshotError
from arl2.files.atomic import remove_stale
from arl2.geometry import FrameRange
from arl2.rollout.best_of import best_of
from arl2.rollout.denoise import Rollout
from arl2.rollout.generator import prompted_memory
from arl2.rollout.noise import SeededNoise
from arl2.rollout.settings import CHANGE_MODES, RolloutSettings
from arl2.streams.cache_warmup import warm_up_decoder, warm_up_memory
from arl2.streams.components import Components, codec_device
from arl2.streams.model_hash import model_metadata
from arl2.streams.prompt_change import PromptChange
from arl2.streams.recent import LatentBlock, PendingBlock, Prompts, Recent
from arl2.streams.request import MemoryShape
from arl2.streams.snapshot import sampler_of
from arl2.streams.snapshot_file import read_snapshot, read_snapshot_bytes
from arl2.streams.state import SnapshotKind, StreamConfig, StreamState
from arl2.streams.stream import Stream
from arl2.video.codec import CodecCache

_ALLOCATED = ("batch", "first_block_candidates", "height", "width", "window", "sink", "rewind_blocks")
# What errors call a snapshot that is no file.
BYTES = Path("snapshot")
_MOST = 2**16  # of sizes that memory is allocated for: beyond every model
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class _Snapshot:
    """A snapshot's content that fits the model."""

    is_exact: bool
    config: StreamConfig
    settings: RolloutSettings
    noise: SeededNoise
    prompts: Prompts
    change: PromptChange | None
    recent: Recent
    pending: tuple[PendingBlock, ...]
    memories: list[Any]
    index: int
    frames: int
    cut: bool
    first_generated: int | None
    tensors: dict[str, Tensor]


def resume_stream(path: Path, components: Components, prompt: str | Sequence[str] | None = None) -> Stream:
    """Continue from a snapshot; what a killed process left half-written beside it is removed.

    Args:
        path: of a file that :meth:`arl2.streams.stream.Stream.save` wrote.
        components: of the pipeline; model, codec and dtype must be those of the snapshot.
        prompt: from the next block on; None: the one it had.

    Raises:
        SnapshotError: a damaged file, or one of another model, plan, dtype or a newer version.
    """
    remove_stale(path)
    return _resumed(path, *read_snapshot(path), components, prompt)


def resume_stream_bytes(data: bytes, components: Components, prompt: str | Sequence[str] | None = None) -> Stream:
    """As :func:`resume_stream`, from what :meth:`arl2.streams.stream.Stream.save_bytes` gave, or the bytes of a file.

    Raises:
        SnapshotError: as there, or no bytes.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise SnapshotError(f"Got {type(data).__name__} to resume; give the bytes of a snapshot.")
    return _resumed(BYTES, *read_snapshot_bytes(bytes(data), BYTES), components, prompt)


def _resumed(
    path: Path,
    values: dict[str, Any],
    tensors: dict[str, Tensor],
    components: Components,
    prompt: str | Sequence[str] | None,
) -> Stream:
    metadata = _Metadata(path, values)
    _require_model(metadata, components)
    with _explained(path, Arl2Error, KeyError, TypeError, ValueError, IndexError, OverflowError):
        snapshot = _checked(metadata, tensors, components)
    with _explained(path, Arl2Error):
        state = _restored(snapshot, components)
    if (state.index, state.rollout.frames) != (snapshot.index, snapshot.frames):
        raise SnapshotError(f"{metadata.where} has two positions that differ; it is damaged.")
    stream = Stream(snapshot.config, state)
    if prompt is not None:
        stream.change_prompt(prompt)
    return stream


@contextmanager
def _explained(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """What validation raises becomes a ``SnapshotError``; anything else is a fault of arl2, or of the machine."""
    try:
        yield
    except SnapshotError:
        raise
    except kinds as error:
        raise SnapshotError(f"'{path}' does not describe a stream of this model ({error}); use another one.") from error


def _checked(metadata: "_Metadata", tensors: dict[str, Tensor], components: Components) -> _Snapshot:
    model = components.transformer
    device = model.patch_embedding.weight.device
    tensors = {name: x if name.startswith(("memory.", "decoder.")) else x.to(device) for name, x in tensors.items()}
    num_frames = metadata.whole_or_none("num_frames")
    batch, height, width = (metadata.whole(name, least=1) for name in ("batch", "height", "width"))
    positions: Any = metadata.one_of("sink_positions", SINK_POSITIONS)
    shape = MemoryShape(batch, height, width, metadata.whole_or_none("window"), metadata.whole("sink"), positions)
    shape.check(components.block_frames)
    kind: Any = metadata.one_of("rewind_kind", get_args(SnapshotKind))
    plan = None if num_frames is None else components.plan_frames(num_frames)
    config = StreamConfig(components, shape, plan, metadata.whole("rewind_blocks"), kind)

    count = metadata.whole("texts", least=1)
    prompts = Prompts(_given(metadata.value("prompts")), tuple(tensors[f"text.{i}"] for i in range(count)))
    change = _change(metadata, tensors, prompts)
    for text in (*prompts.texts, *(() if change is None else change.prompts.texts)):
        _require_text(metadata, text, batch, components)
    # Files of earlier versions know of one candidate alone, and later blocks have no others.
    begins = metadata.has("first_block_candidates") and not metadata.whole("frames")
    settings = RolloutSettings(
        sampler_of(metadata.of("sampler", dict)),
        height,
        width,
        metadata.whole_or_none("first_block_frames"),
        float(metadata.of("context_noise", float)),
        best_of(components.verifier, metadata.whole("first_block_candidates", least=1) if begins else 1),
    )
    seeds = metadata.of("seeds", list)
    noise = SeededNoise(seeds)
    noise.check(batch)
    is_exact = metadata.one_of("kind", get_args(SnapshotKind)) == "exact"
    memories = metadata.of("memories", list)
    if is_exact and len(memories) != count:
        raise SnapshotError(f"{metadata.where} has {len(memories)} memories for {count} prompts; it is damaged.")
    return _Snapshot(
        is_exact=is_exact,
        config=config,
        settings=settings,
        noise=noise,
        prompts=prompts,
        change=change,
        recent=_recent(metadata, tensors, shape, model.config.in_channels),
        pending=_pending(metadata, tensors, shape, model.config.in_channels),
        memories=memories,
        index=metadata.whole("index"),
        frames=metadata.whole("frames"),
        cut=metadata.of("cut", bool),
        first_generated=_first_generated(metadata),
        tensors=tensors,
    )


def _first_generated(metadata: "_Metadata") -> int | None:
    index = metadata.whole("index")
    if not metadata.has("first_generated"):
        return 0 if index else None  # files of earlier versions: the first block counted as generated
    if metadata.value("first_generated") is None:
        return None
    first = metadata.whole("first_generated")
    if first >= index:
        raise SnapshotError(f"{metadata.where} has first_generated {first} of {index} blocks; it is damaged.")
    return first


def _restored(snapshot: _Snapshot, components: Components) -> StreamState:
    """Allocate memory and fill it: a copy if the snapshot is exact, else by a cache warm-up."""
    model, shape, tensors = components.transformer, snapshot.config.shape, snapshot.tensors
    prompted = [
        prompted_memory(model, text, shape.allocate(model), shape.height, shape.width)
        for text in snapshot.prompts.texts
    ]
    rollout = Rollout(
        model,
        prompted,
        noise=snapshot.noise,
        settings=snapshot.settings,
        first_generated=snapshot.first_generated,
    )
    if snapshot.is_exact:
        for m, (memory, saved) in enumerate(zip(rollout.memories, snapshot.memories, strict=True)):
            memory.restore(memory.share(_under(tensors, f"memory.{m}.")), saved)
        decoder = _decoder(_under(tensors, "decoder."), components)
    else:
        pairs = enumerate(rollout.memories)
        states = [memory.share(_under(tensors, f"states.{m}.")) for m, memory in pairs]
        warm_up_memory(rollout, snapshot.recent, states, frames=snapshot.frames)
        decoder = warm_up_decoder(components.codec, snapshot.recent)
    return StreamState(
        rollout=rollout,
        seeds=snapshot.noise.seeds,
        prompts=snapshot.prompts,
        recent=snapshot.recent,
        decoder=decoder,
        decoded=rollout.next_block()[0],
        pending=snapshot.pending,
        change=snapshot.change,
        cut=snapshot.cut,
    )


def _require_model(metadata: "_Metadata", components: Components) -> None:
    theirs, ours = metadata.of("model", dict), model_metadata(components.transformer, components.codec)
    remedies = {
        "signature": "resume it with the model it was saved from",
        "dtype": f"load the model with torch_dtype=torch.{theirs.get('dtype')}",
        "codec": "resume it with the codec it was saved with",
        "hash": "resume it with the same weights",
    }
    names = {"signature": "a model of", "dtype": "the dtype", "codec": "the codec", "hash": "weights with the hash"}
    for name, own in ours.items():
        if theirs.get(name) != own:
            raise SnapshotError(
                f"{metadata.where} is of {names[name]} {theirs.get(name)}, but this pipeline has {own}; "
                f"{remedies[name]}."
            )


def _require_text(metadata: "_Metadata", text: Tensor, batch: int, components: Components) -> None:
    config = components.transformer.config
    if text.dim() != 3 or (text.shape[0], text.shape[2]) != (batch, config.text_dim) or text.shape[1] > config.text_len:
        raise SnapshotError(
            f"{metadata.where} has prompt embeddings {list(text.shape)} instead of {batch} of at most "
            f"{config.text_len} rows of {config.text_dim}; it is damaged."
        )


def _recent(metadata: "_Metadata", tensors: dict[str, Tensor], shape: MemoryShape, channels: int) -> Recent:
    def blocks(name: str) -> list[LatentBlock]:
        found = []
        spans = metadata.of(name, list)
        known = metadata.flags(f"{name}_known", len(spans))
        for i, (start, stop) in enumerate(spans):
            if type(start) is not int or type(stop) is not int or not 0 <= start < stop:
                raise SnapshotError(f"{metadata.where} has latents at impossible frames; it is damaged.")
            latents = tensors[f"{name}.{i}"]
            _require_latents(metadata, latents, [shape.batch, channels, stop - start, shape.height, shape.width])
            found.append(LatentBlock(FrameRange(start, stop), latents, known[i]))
        return found

    recent = Recent.of_window(shape.window, shape.sink)
    apart, last, start = blocks("sinks"), blocks("last"), metadata.whole("start")
    sinks = [block for block in (*apart, *last) if block.frames.start < start + shape.sink]
    if any(a.frames.stop != b.frames.start for a, b in itertools.pairwise(last)):
        raise SnapshotError(f"{metadata.where} lacks latents between its blocks; it is damaged.")
    if (last[-1].frames.stop if last else 0) != metadata.whole("frames"):
        raise SnapshotError(f"{metadata.where} lacks its latest latents; it is damaged.")
    return Recent(recent.keep, recent.sink, start, tuple(sinks), tuple(last))


def _pending(
    metadata: "_Metadata", tensors: dict[str, Tensor], shape: MemoryShape, channels: int
) -> tuple[PendingBlock, ...]:
    count = metadata.whole("waiting")
    if count > len(tensors):
        raise SnapshotError(f"{metadata.where} lacks pending blocks; it is damaged.")
    cuts = metadata.flags("waiting_cuts", count)
    found = tuple(PendingBlock(tensors[f"waiting.{i}"], cut) for i, cut in enumerate(cuts))
    for one in found:
        frames = one.latents.shape[2] if one.latents.dim() == 5 else 1
        _require_latents(metadata, one.latents, [shape.batch, channels, max(1, frames), shape.height, shape.width])
    return found


def _require_latents(metadata: "_Metadata", latents: Tensor, expected: list[int]) -> None:
    if list(latents.shape) != expected or not latents.is_floating_point():
        raise SnapshotError(
            f"{metadata.where} has latents {list(latents.shape)} of {latents.dtype} instead of {expected}; it is "
            "damaged."
        )


def _decoder(tensors: dict[str, Tensor], components: Components) -> CodecCache:
    cache = CodecCache.from_tensors("decoder", tensors)
    cache.require("decoder", layout=components.codec.new_cache("decoder").layout)
    device = codec_device(components.codec)
    if device is not None:
        cache.features = {name: x.to(device) for name, x in cache.features.items()}
    return cache


def _change(metadata: "_Metadata", tensors: dict[str, Tensor], prompts: Prompts) -> PromptChange | None:
    saved = metadata.value("change")
    if saved is None:
        return None
    inner = _Metadata(metadata.path, saved)
    mode: Any = inner.one_of("mode", CHANGE_MODES)
    given = _given(inner.value("prompts"))
    if given is None:
        raise TypeError("a change to no prompt")  # embeddings alone are never pending
    return PromptChange(prompts.changed(given, tensors["change.text"]), mode)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _given(saved: object) -> str | tuple[str, ...] | None:
    if isinstance(saved, list) and all(isinstance(one, str) for one in saved):
        return tuple(saved)
    if saved is None or isinstance(saved, str):
        return saved
    raise TypeError("prompts that are not text")


class _Metadata:
    """Metadata of a file, taken value by value, each of the expected kind."""

    def __init__(self, path: Path, values: object) -> None:
        if not isinstance(values, dict):
            raise SnapshotError(f"'{path}' has unreadable metadata; it is damaged.")
        self.path, self.where, self._values = path, f"'{path}'", values

    def value(self, name: str) -> Any:
        if name not in self._values:
            raise SnapshotError(f"{self.where} lacks its {name}; it is damaged.")
        return self._values[name]

    def has(self, name: str) -> bool:
        """False in files older than the entry."""
        return name in self._values

    def of(self, name: str, kind: type[Kind]) -> Kind:
        value = self.value(name)
        if type(value) is not kind:
            raise SnapshotError(f"{self.where} has {name} {value!r:.80}; it is damaged.")
        return value

    def flags(self, name: str, count: int) -> list[bool]:
        """One for each of ``count`` things; all False in files older than the entry."""
        found = self.of(name, list) if self.has(name) else [False] * count
        if len(found) != count or any(type(flag) is not bool for flag in found):
            raise SnapshotError(f"{self.where} has {name} {found!r:.80}; it is damaged.")
        return found

    def whole(self, name: str, least: int = 0) -> int:
        value = self.of(name, int)
        if not least <= value <= (_MOST if name in _ALLOCATED else 2**53):
            raise SnapshotError(f"{self.where} has {name} {value}; it is damaged.")
        return value

    def whole_or_none(self, name: str) -> int | None:
        return None if self.value(name) is None else self.whole(name, least=1)

    def one_of(self, name: str, known: tuple[str, ...]) -> str:
        value = self.of(name, str)
        if value not in known:
            raise SnapshotError(f"{self.where} has {name} {value!r:.80}; accepted are {', '.join(known)}.")
        return value
