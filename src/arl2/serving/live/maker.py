"""Streams of one pipeline for a host: requests are checked against the model before anything is allocated."""

import secrets
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from arl2.errors import Arl2Error, ConfigError, suggestion
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.live.first_blocks import FirstBlocks
from arl2.serving.live.sizes import StreamSize, stream_size
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
    """What a snapshot says of its stream: seed of its first sample, and height and width of its pictures."""

    seed: int
    height: int
    width: int


class StreamMaker:
    """Makes streams, in turn with those that run.

    Args:
        pipe: of the model.
        turns: of the model.
    """

    def __init__(self, pipe: ARL2Pipeline, turns: Turns) -> None:
        self.pipe, self._turns = pipe, turns
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
        """Of a snapshot that could be resumed."""
        values, _ = read_snapshot_bytes(data, BYTES)
        factor = self.pipe.codec.spatial_factor
        return SnapshotFacts(values["seeds"][0], factor * values["height"], factor * values["width"])

    def size(self, request: StreamRequest | None) -> StreamSize:
        """What a stream will take; None: one of the model's own size.

        Raises:
            Arl2Error: as ``checked``; a stream that would grow without end.
        """
        if request is None:
            return stream_size(self.pipe, self.pipe.check())
        return stream_size(self.pipe, self.checked(request)[1])

    def warm(self) -> None:
        """Make a block that nobody sees: kernels are compiled and chosen, weights are touched."""
        text = self.pipe.text
        nothing = torch.zeros(1, text.length, text.width, device=self.pipe.device)  # no words suit every model
        with self.pipe.stream(prompt_embeds=nothing, seed=0, rewind_blocks=0) as stream, torch.no_grad():
            with self._turns.denoise:
                block = stream.latents_next()
            with self._turns.decode:
                stream.decode(block)
