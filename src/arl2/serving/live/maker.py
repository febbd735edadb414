"""Streams of one pipeline for a host: requests are checked against the model before anything is allocated."""

import secrets
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from arl2.errors import Arl2Error, ConfigError, SnapshotError, suggestion
from arl2.pipeline.budget import GenerationJob
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.live.first_blocks import FirstBlocks
from arl2.serving.live.settings import HostSettings
from arl2.serving.live.sizes import StreamSize, job_of, stream_size
from arl2.serving.live.source import Opening
from arl2.serving.live.turns import Turns
from arl2.serving.live.wire import StreamRequest
from arl2.streams.model_hash import model_metadata
from arl2.streams.options import SamplingOptions
from arl2.streams.request import CheckedOptions
from arl2.streams.resume import BYTES
from arl2.streams.snapshot_file import read_snapshot_bytes
from arl2.streams.stream import Stream

_OPTIONS = tuple(field.name for field in fields(SamplingOptions) if field.name != "seed")
_SMALL_SHARE = 0.1
_LARGEST_DRAWN = 2**31  # readable, and exact in JavaScript


@dataclass(frozen=True)
class SnapshotFacts:
    """What a snapshot says of its stream.

    Attributes:
        seed: of its noise.
        job: as the memory planner takes it.
        num_frames: its length in video frames; None: it is continuous.
        candidates: first blocks side by side, if it has not begun.
        points: copies of its memory that it keeps.
    """

    seed: int
    job: GenerationJob
    num_frames: int | None
    candidates: int
    points: int


class StreamMaker:
    """Makes streams, in turn with those that run.

    Args:
        pipe: of the model.
        turns: of the model.
        settings: of the host: how large streams may be.
    """

    def __init__(self, pipe: ARL2Pipeline, turns: Turns, settings: HostSettings | None = None) -> None:
        self.pipe, self._turns, self._settings = pipe, turns, settings or HostSettings()
        self._first_blocks: FirstBlocks | None = None
        self.model_hash: str = model_metadata(pipe.transformer, pipe.codec)["hash"]

    def may_keep(self, count: int, limit: int | None) -> bool:
        """Whether so many streams beside those that run take little of the bytes for streams."""
        try:
            return limit is None or count * self.size(None).size <= _SMALL_SHARE * limit
        except Arl2Error:  # by its own settings the model makes no stream without end
            return False

    def share_first_blocks(self, most: int) -> None:
        """Keep so many first blocks for streams that begin alike."""
        self._first_blocks = FirstBlocks(self._turns, most=most)

    def checked(self, request: StreamRequest) -> tuple[SamplingOptions, CheckedOptions]:
        """The options of a request, and what they come to.

        Raises:
            ConfigError: an empty prompt, unknown options, options that do not go with the model.
            Arl2Error: as ``ARL2Pipeline.check``.
        """
        if not request.prompt.strip():
            raise ConfigError("The prompt is empty; give words.")
        if request.blocks is not None and request.blocks < 1:
            raise ConfigError(f"Got {request.blocks} blocks; give 1 or more, or leave it out.")
        for name in request.options:
            if name not in _OPTIONS:
                raise ConfigError(f"Unknown option '{name}'. {suggestion(name, _OPTIONS)}")
        given: dict[str, Any] = dict(request.options)
        options = SamplingOptions(seed=request.seed, **given)
        return options, self.pipe.check(options)

    def with_seed(self, request: StreamRequest) -> StreamRequest:
        """The request with a seed, drawn if it has none."""
        return request if request.seed is not None else replace(request, seed=secrets.randbelow(_LARGEST_DRAWN))

    def begin(self, request: StreamRequest) -> Stream:
        """A stream before its first block; the prompt is embedded, memory allocated.

        Raises:
            Arl2Error: as ``ARL2Pipeline.stream``.
        """
        options, _ = self.checked(request)
        return self.pipe.stream(request.prompt, options=options, rewind_blocks=0)

    def opening(self, request: StreamRequest, *, shared: bool) -> Opening:
        """The same for a ``LiveSource``; ``shared``: with the first block of streams that begin alike.

        Raises:
            Arl2Error: as ``begin``.
        """
        if not shared or self._first_blocks is None:
            stream = self.begin(request)
            return lambda: (stream, None)
        key = (request.prompt, request.seed, repr(sorted(request.options.items())))
        return self._first_blocks.opening(key, lambda: self.begin(request))

    def resume(self, data: bytes, prompt: str | None = None) -> Stream:
        """A stream from the bytes of a snapshot.

        Raises:
            SnapshotError: they are damaged, or of another model.
        """
        with torch.no_grad():
            return self.pipe.resume_bytes(data, prompt=prompt)

    def facts(self, data: bytes) -> SnapshotFacts:
        """Of a snapshot, before anything is allocated for its stream; the rest is checked when it is resumed.

        Raises:
            SnapshotError: the bytes are damaged, or several streams side by side.
        """
        values, _ = read_snapshot_bytes(data, BYTES)

        def whole(name: str, least: int = 0) -> int:
            value = values.get(name)
            if type(value) is not int or not least <= value < 2**63:
                raise SnapshotError(f"The snapshot has {name} {value!r:.40}; it is damaged.")
            return value

        batch, seeds, factor = whole("batch", 1), values.get("seeds"), self.pipe.codec.spatial_factor
        if batch != 1:
            raise SnapshotError(f"The snapshot is of {batch} videos side by side; save them as streams of their own.")
        if not isinstance(seeds, list) or len(seeds) != 1 or type(seeds[0]) is not int:
            raise SnapshotError("The snapshot has no seed; it is damaged.")
        num_frames = None if values.get("num_frames") is None else whole("num_frames", 1)
        job = GenerationJob(
            frames=None if num_frames is None else self.pipe.plan_frames(num_frames).latent_frames,
            height=factor * whole("height", 1),
            width=factor * whole("width", 1),
            window=None if values.get("window") is None else whole("window", 1),
            sink=whole("sink"),
            sink_positions="relative" if values.get("sink_positions") == "relative" else "absolute",
            guided=whole("texts", 1) > 1,
            dtype=self.pipe.transformer.patch_embedding.weight.dtype,
        )
        begun = whole("frames") > 0 or "first_block_candidates" not in values
        return SnapshotFacts(
            seed=seeds[0],
            job=job,
            num_frames=num_frames,
            candidates=1 if begun else whole("first_block_candidates", 1),
            points=whole("rewind_blocks") if values.get("rewind_kind") == "exact" else 0,
        )

    def size(self, what: StreamRequest | SnapshotFacts | None) -> StreamSize:
        """What a stream will take; None: one of the model's own size.

        Raises:
            ConfigError: a picture or a window that is too large for a stream beside others.
            Arl2Error: as ``checked``; a stream that would grow without end.
        """
        scale = self._settings.scale
        if isinstance(what, SnapshotFacts):
            self._require_modest(what.job)
            return stream_size(self.pipe, what.job, scale=scale, candidates=what.candidates, points=what.points)
        checked = self.pipe.check() if what is None else self.checked(what)[1]
        job, best_of = job_of(self.pipe, checked), checked.best_of
        if what is not None:
            self._require_modest(job)
        return stream_size(self.pipe, job, scale=scale, candidates=1 if best_of is None else best_of.candidates)

    def _require_modest(self, job: GenerationJob) -> None:
        """One block of a stream holds up all others: a block that is far larger than the model's own is refused."""
        own, most = self.pipe.settings, self._settings
        pixels = int(most.most_pixels * own.height * own.width)
        if job.height * job.width > pixels:
            raise ConfigError(
                f"Got pictures of {job.width}x{job.height}; this server's streams have at most {pixels:,} pixels, "
                f"{most.most_pixels:g} times the model's {own.width}x{own.height}."
            )
        window = own.window or self.pipe.plan_frames(own.num_frames).latent_frames
        frames = int(most.most_window * window)
        asked = job.window or job.frames
        if asked is not None and asked > frames:
            raise ConfigError(
                f"This stream would attend to {asked:,} latent frames; give a window of at most {frames:,}, "
                f"{most.most_window:g} times the model's {window}."
            )

    def warm(self) -> None:
        """Make a block that nobody sees: kernels are compiled and chosen, weights are touched."""
        text = self.pipe.text
        nothing = torch.zeros(1, text.length, text.width, device=self.pipe.device)  # no words suit every model
        with self.pipe.stream(prompt_embeds=nothing, seed=0, rewind_blocks=0) as stream, torch.no_grad():
            with self._turns.denoise:
                block = stream.latents_next()
            with self._turns.decode:
                stream.decode(block)
