"""A stream from a snapshot: what the file says is held against the model, then memory is filled."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from torch import Tensor

from arl2.attention.plan import SINK_POSITIONS
from arl2.errors import SnapshotError
from arl2.geometry import FrameRange
from arl2.rollout.best_of import best_of
from arl2.rollout.denoise import Rollout, RolloutSettings
from arl2.rollout.frames import FramePlan
from arl2.rollout.generator import prompted_memory
from arl2.rollout.noise import SeededNoise
from arl2.rollout.settings import CHANGE_MODES
from arl2.streams.cache_warmup import prime_decoder, prime_memory
from arl2.streams.codec_device import codec_device
from arl2.streams.components import Components
from arl2.streams.model_hash import model_facts
from arl2.streams.prompt_change import PromptChange
from arl2.streams.recent import LatentBlock, PendingBlock, Prompts, Recent
from arl2.streams.request import MemoryShape
from arl2.streams.snapshot import sampler_of
from arl2.streams.snapshot_file import read_snapshot
from arl2.streams.state import SnapshotKind, StreamConfig, StreamState
from arl2.streams.stream import Stream
from arl2.video.codec import CodecCache

_ALLOCATED = ("batch", "first_block_candidates", "height", "width", "window", "sink", "rewind_blocks")
_MOST = 2**16  # of what memory is allocated for: beyond every model
Kind = TypeVar("Kind")


def resume_stream(path: Path, parts: Components, plan_of: Callable[[int], FramePlan]) -> Stream:
    """The stream that a snapshot was made of.

    Args:
        path: what :meth:`arl2.streams.stream.Stream.save` wrote.
        parts: of the pipeline; model, codec and dtype must be those of the snapshot.
        plan_of: plans a number of video frames.

    Raises:
        SnapshotError: a damaged file, or one of another model, plan, dtype or a newer version.
    """
    values, tensors = read_snapshot(path)
    facts = _Facts(path, values)
    _require_model(facts, parts)
    try:
        return _resume(facts, tensors, parts, plan_of)
    except SnapshotError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, AssertionError, RuntimeError) as error:
        raise SnapshotError(f"'{path}' does not describe a stream of this model ({error}); use another one.") from error


def _resume(
    facts: "_Facts", tensors: dict[str, Tensor], parts: Components, plan_of: Callable[[int], FramePlan]
) -> Stream:
    exact = facts.one_of("kind", get_args(SnapshotKind)) == "exact"
    device = parts.transformer.patch_embedding.weight.device
    tensors = {name: x if name.startswith(("memory.", "decoder.")) else x.to(device) for name, x in tensors.items()}
    asked = facts.whole_or_none("num_frames")
    batch, height, width = (facts.whole(name, least=1) for name in ("batch", "height", "width"))
    positions: Any = facts.one_of("sink_positions", SINK_POSITIONS)
    shape = MemoryShape(batch, height, width, facts.whole_or_none("window"), facts.whole("sink"), positions)
    kind: Any = facts.one_of("rewind_kind", get_args(SnapshotKind))
    terms = StreamConfig(parts, shape, None if asked is None else plan_of(asked), facts.whole("rewind_blocks"), kind)

    count = facts.whole("texts", least=1)
    prompts = Prompts(_given(facts.value("prompts")), tuple(tensors[f"text.{i}"] for i in range(count)))
    change = _change(facts, tensors, prompts)
    for text in (*prompts.texts, *(() if change is None else change.prompts.texts)):
        _require_text(facts, text, batch, parts)
    # Files of earlier versions know of one candidate alone, and later blocks have no others.
    begins = facts.has("first_block_candidates") and not facts.whole("frames")
    settings = RolloutSettings(
        sampler_of(facts.of("sampler", dict)),
        height,
        width,
        facts.whole_or_none("first_block_frames"),
        float(facts.of("context_noise", float)),
        best_of(parts.verifier, facts.whole("first_block_candidates", least=1) if begins else 1),
    )
    model = parts.transformer
    # Before memory is allocated: the sizes must be those of the latents.
    recent = _recent(facts, tensors, shape, model.config.in_channels)
    waiting = _waiting(facts, tensors, shape, model.config.in_channels)
    prompted = [prompted_memory(model, text, shape.allocate(model), height, width) for text in prompts.texts]
    seeds = tuple(facts.of("seeds", list))
    if any(type(seed) is not int for seed in seeds):
        raise SnapshotError(f"{facts.where} says seeds are {seeds!r:.80}; it is damaged.")
    rollout = Rollout(model, prompted, noise=SeededNoise(seeds), settings=settings)
    if exact:
        for m, (memory, told) in enumerate(zip(rollout.memories, facts.of("memories", list), strict=True)):
            memory.restore(_under(tensors, f"memory.{m}."), told)
        decoder = _decoder(_under(tensors, "decoder."), parts)
    else:
        states = [_under(tensors, f"states.{m}.") for m in range(count)]
        prime_memory(rollout, recent, states, frames=facts.whole("frames"))
        decoder = prime_decoder(parts.codec, recent)
    state = StreamState(
        rollout=rollout,
        seeds=seeds,
        prompts=prompts,
        recent=recent,
        decoder=decoder,
        decoded=rollout.next_block()[0],
        waiting=waiting,
        change=change,
        cut=facts.of("cut", bool),
    )
    if (state.index, rollout.frames) != (facts.whole("index"), facts.whole("frames")):
        raise SnapshotError(f"{facts.where} stands at two places at once; it is damaged.")
    return Stream(terms, state)


def _require_model(facts: "_Facts", parts: Components) -> None:
    theirs, ours = facts.of("model", dict), model_facts(parts.transformer, parts.codec)
    remedies = {
        "signature": "resume it with the model that it was made with",
        "dtype": f"load the model with torch_dtype=torch.{theirs.get('dtype')}",
        "codec": "resume it with the codec that it was made with",
        "hash": "resume it with the very weights that it was made with",
    }
    names = {"signature": "a model of", "dtype": "the dtype", "codec": "the codec", "hash": "weights with the hash"}
    for name, own in ours.items():
        if theirs.get(name) != own:
            raise SnapshotError(
                f"{facts.where} is of {names[name]} {theirs.get(name)}, but this pipeline has {own}; {remedies[name]}."
            )


def _require_text(facts: "_Facts", text: Tensor, batch: int, parts: Components) -> None:
    config = parts.transformer.config
    if text.dim() != 3 or (text.shape[0], text.shape[2]) != (batch, config.text_dim) or text.shape[1] > config.text_len:
        raise SnapshotError(
            f"{facts.where} has prompt embeddings {list(text.shape)}, but {batch} of at most {config.text_len} rows of "
            f"{config.text_dim} belong there; it is damaged."
        )


def _recent(facts: "_Facts", tensors: dict[str, Tensor], shape: MemoryShape, channels: int) -> Recent:
    def pieces(name: str) -> list[LatentBlock]:
        found = []
        for i, (start, stop) in enumerate(facts.of(name, list)):
            if type(start) is not int or type(stop) is not int or not 0 <= start < stop:
                raise SnapshotError(f"{facts.where} has latents of no possible frames; it is damaged.")
            latents = tensors[f"{name}.{i}"]
            _require_latents(facts, latents, [shape.batch, channels, stop - start, shape.height, shape.width])
            found.append(LatentBlock(FrameRange(start, stop), latents))
        return found

    recent = Recent.of_window(shape.window, shape.sink)
    apart, last, start = pieces("sinks"), pieces("last"), facts.whole("start")
    sinks = [piece for piece in (*apart, *last) if piece.frames.start < start + shape.sink]
    if any(a.frames.stop != b.frames.start for a, b in itertools.pairwise(last)):
        raise SnapshotError(f"{facts.where} lacks latents between its blocks; it is damaged.")
    if (last[-1].frames.stop if last else 0) != facts.whole("frames"):
        raise SnapshotError(f"{facts.where} lacks its latest latents; it is damaged.")
    return Recent(recent.keep, recent.sink, start, tuple(sinks), tuple(last))


def _waiting(
    facts: "_Facts", tensors: dict[str, Tensor], shape: MemoryShape, channels: int
) -> tuple[PendingBlock, ...]:
    count = facts.whole("waiting")
    if count > len(tensors):
        raise SnapshotError(f"{facts.where} lacks blocks that wait; it is damaged.")
    cuts = facts.of("waiting_cuts", list) if facts.has("waiting_cuts") else [False] * count
    if len(cuts) != count or any(type(cut) is not bool for cut in cuts):
        raise SnapshotError(f"{facts.where} says waiting_cuts is {cuts!r:.80}; it is damaged.")
    found = tuple(PendingBlock(tensors[f"waiting.{i}"], cut) for i, cut in enumerate(cuts))
    for one in found:
        frames = one.latents.shape[2] if one.latents.dim() == 5 else 1
        _require_latents(facts, one.latents, [shape.batch, channels, max(1, frames), shape.height, shape.width])
    return found


def _require_latents(facts: "_Facts", latents: Tensor, expected: list[int]) -> None:
    if list(latents.shape) != expected or not latents.is_floating_point():
        raise SnapshotError(
            f"{facts.where} has latents {list(latents.shape)} of {latents.dtype} for {expected}; it is damaged."
        )


def _decoder(tensors: dict[str, Tensor], parts: Components) -> CodecCache:
    cache = CodecCache.from_tensors("decoder", tensors)
    device = codec_device(parts.codec)
    if device is not None:
        cache.features = {name: x.to(device) for name, x in cache.features.items()}
    return cache


def _change(facts: "_Facts", tensors: dict[str, Tensor], prompts: Prompts) -> PromptChange | None:
    told = facts.value("change")
    if told is None:
        return None
    inner = _Facts(facts.path, told)
    mode: Any = inner.one_of("mode", CHANGE_MODES)
    given = _given(inner.value("prompts"))
    if given is None:
        raise TypeError("a change to no prompt")  # embeddings alone never wait
    return PromptChange(prompts.changed(given, tensors["change.text"]), mode)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _given(told: object) -> str | tuple[str, ...] | None:
    if isinstance(told, list) and all(isinstance(one, str) for one in told):
        return tuple(told)
    if told is None or isinstance(told, str):
        return told
    raise TypeError("prompts that are none")


class _Facts:
    """Facts of a file, taken one by one, each of the kind that is expected."""

    def __init__(self, path: Path, values: object) -> None:
        if not isinstance(values, dict):
            raise SnapshotError(f"'{path}' has facts without names; it is damaged.")
        self.path, self.where, self._values = path, f"'{path}'", values

    def value(self, name: str) -> Any:
        """Whatever it is."""
        if name not in self._values:
            raise SnapshotError(f"{self.where} does not say its {name}; it is damaged.")
        return self._values[name]

    def has(self, name: str) -> bool:
        """Whether it is said: older files lack what came later."""
        return name in self._values

    def of(self, name: str, kind: type[Kind]) -> Kind:
        """A value of exactly one kind."""
        value = self.value(name)
        if type(value) is not kind:
            raise SnapshotError(f"{self.where} says {name} is {value!r:.80}; it is damaged.")
        return value

    def whole(self, name: str, least: int = 0) -> int:
        """A whole number."""
        value = self.of(name, int)
        if not least <= value <= (_MOST if name in _ALLOCATED else 2**53):
            raise SnapshotError(f"{self.where} says {name} is {value}; it is damaged.")
        return value

    def whole_or_none(self, name: str) -> int | None:
        """A whole number from 1, or nothing."""
        return None if self.value(name) is None else self.whole(name, least=1)

    def one_of(self, name: str, known: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.of(name, str)
        if value not in known:
            raise SnapshotError(f"{self.where} says {name} is {value!r:.80}; known are {', '.join(known)}.")
        return value
