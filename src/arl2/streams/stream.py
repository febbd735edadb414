"""A continuous stream of blocks that can change its prompt, be saved, forked, rewound and extended with real frames."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from arl2.errors import ConfigError, GeometryError, StreamError
from arl2.files.atomic import StagedFile
from arl2.geometry import video_frames_of
from arl2.model.settings import whole
from arl2.rollout.blocks import Block, VideoBlock
from arl2.rollout.denoise import Rollout
from arl2.rollout.frames import FramePlan
from arl2.rollout.generator import prompted_memory
from arl2.rollout.noise import SeededNoise
from arl2.rollout.settings import CHANGE_MODES, ChangeMode
from arl2.streams.components import for_codec
from arl2.streams.options import Seeds
from arl2.streams.prompt_change import PromptChange, apply_change
from arl2.streams.real_frames import RealFrames, as_video, encode_next, whole_block_frames
from arl2.streams.recent import LatentBlock, Recent, pending_blocks
from arl2.streams.request import Request, prompt_list, seeds_of
from arl2.streams.snapshot import save_stream, snapshot_tensors, stage_stream, stream_bytes
from arl2.streams.state import SnapshotKind, StreamConfig, StreamState

_BROKEN = (
    "A cache-update pass of this stream failed half-way, so its memory cannot be used; rewind it (possible if "
    "rewind_blocks was above 0), or resume a snapshot."
)


class Stream(Iterator[VideoBlock], AsyncIterator[VideoBlock]):
    """Blocks of video, one after the other, from ``ARL2Pipeline.stream`` or ``resume``.

    What it holds does not grow, however long it runs: memory (with a window), the latents of the last window, the
    decoder's cache, and ``rewind_blocks`` rewind points.

    ``next`` denoises a block and decodes it. The two halves, :meth:`latents_next` and :meth:`decode`, may also be
    called on two threads, so that block ``i`` is decoded while ``i + 1`` is denoised. A prompt may be set on any
    thread. :meth:`save`, :meth:`fork`, :meth:`rewind` and :meth:`extend_with` are called between blocks, when all of
    them are decoded.

    Calls of ``next`` on several threads queue. A block of ``next`` whose decoding failed is decoded by the call after
    it. After an error in the middle of a cache-update pass a stream makes no more blocks until it is rewound: the block
    that failed counts as the last one.

    Args:
        config: what stays the same.
        state: owned by the stream from now on.
    """

    def __init__(self, config: StreamConfig, state: StreamState) -> None:
        self._config = config
        self._now: StreamState | None = state
        self._turn = threading.RLock()  # re-entrant: a callback may call the stream

    @classmethod
    def begin(cls, config: StreamConfig, request: Request) -> "Stream":
        """A new stream; conditioning frames are its first blocks.

        Raises:
            ConfigError: embeddings that do not fit the model.
        """
        settings, shape, prompts = request.settings, request.shape, request.prompts
        pairs = zip(prompts.texts, request.memories, strict=True)
        model = config.components.transformer
        prompted = [prompted_memory(model, text, memory, shape.height, shape.width) for text, memory in pairs]
        rollout = Rollout(model, prompted, noise=request.noise, settings=settings)
        state = StreamState(
            rollout=rollout,
            seeds=request.noise.seeds,
            prompts=prompts,
            recent=Recent.of_window(shape.window, shape.sink),
            decoder=config.components.codec.new_cache("decoder"),
        )
        if request.known is not None:
            first, step = settings.first_block_frames or rollout.block_frames, rollout.block_frames
            rest = request.known.shape[2] - first
            state.pending = pending_blocks(request.known, (first, *[step] * (rest // step)))
        return cls(config, state)

    # Blocks

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> VideoBlock:
        with self._turn:
            if self._state.undecoded is None:
                self._state.undecoded = self.latents_next()
            return self.decode(self._state.undecoded)

    def latents_next(self) -> Block:
        """Denoise the next block and commit it; conditioning latents are only committed.

        Raises:
            StopIteration: ``num_frames`` are reached.
            StreamError: an earlier pass failed half-way, or the stream is closed.
        """
        state, plan = self._state, self._config.plan
        if not state.whole:
            raise StreamError(_BROKEN)
        if plan is not None and state.rollout.frames >= plan.latent_frames:
            raise StopIteration
        change = state.change
        if change is not None:
            decay = self._config.components.settings.refresh_decay
            state.recent = apply_change(state.rollout, change, state.recent, decay=decay)
            state.prompts = change.prompts
            state.cut = state.cut or (change.mode == "cut" and state.rollout.frames > 0)
            if state.change is change:  # not one that was set meanwhile
                state.change = None
        point = state.point(self._config) if self._config.rewind_blocks else None
        if point is not None:
            earlier = [one for one in state.points if one.index < point.index]
            state.points = (*earlier, point)[-self._config.rewind_blocks :]
        known = state.pending[0] if state.pending else None
        cut = state.cut or (known is not None and known.cut)
        # The caller may write into the block: the stream keeps clones.
        block = state.rollout.make(None if known is None else known.latents.clone(), cut=cut)
        state.recent = state.recent.with_block(LatentBlock(block.frames, block.latents.clone(), known is not None))
        state.pending, state.cut = state.pending[1:], False
        return block

    def decode(self, block: Block) -> VideoBlock:
        """Video frames of a block of :meth:`latents_next`; each block once, in order.

        Raises:
            StreamError: another block is next, or the stream is closed.
        """
        state, plan, codec = self._state, self._config.plan, self._config.components.codec
        if block.index != state.decoded:
            raise StreamError(f"Got block {block.index} to decode, but block {state.decoded} is next.")
        started = time.perf_counter()
        if self._config.rewind_kind == "exact" and self._config.rewind_blocks:
            oldest = block.index - self._config.rewind_blocks
            kept = {index: cache for index, cache in state.decoders.items() if index > oldest}
            state.decoders = {**kept, block.index: state.decoder.clone()}
        # Codecs replace what they remember, and never write into it: this copy is enough should decoding fail.
        decoder = replace(state.decoder, features=dict(state.decoder.features))
        with torch.no_grad():
            video = codec.decode(for_codec(codec, block.latents), decoder)
        state.decoder = decoder
        if state.undecoded is block:
            state.undecoded = None
        begun = self._video_frames_before(block.frames.start)
        state.decoded += 1
        return VideoBlock(
            index=block.index,
            frames=block.frames,
            latents=block.latents,
            first_video_frame=begun,
            video=video if plan is None else video[:, :, : plan.requested - begun],
            denoise_seconds=block.denoise_seconds,
            commit_seconds=block.commit_seconds,
            decode_seconds=time.perf_counter() - started,
            cut=block.cut,
        )

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> VideoBlock:
        """The next block, generated on another thread."""
        block = await asyncio.to_thread(next, self, None)
        if block is None:
            raise StopAsyncIteration
        return block

    def name_with(self, prompt: str | Sequence[str] | None) -> str:
        """Of model, this stream's seeds and a prompt: 24 digits, the first eight of model and seeds alone."""
        return self._config.name_with(self._state.seeds, prompt)

    @property
    def plan(self) -> FramePlan | None:
        """The length; None for a continuous stream."""
        return self._config.plan

    @property
    def index(self) -> int:
        """Number of the next block."""
        return self._state.index

    @property
    def video_frames(self) -> int:
        """Video frames yielded so far, counted from the start of the stream."""
        state = self._state
        first = state.rollout.settings.first_block_frames or state.rollout.block_frames
        decoded = first + (state.decoded - 1) * state.rollout.block_frames if state.decoded else 0
        before = self._video_frames_before(decoded)
        return before if self._config.plan is None else min(before, self._config.plan.requested)

    @property
    def memory_bytes(self) -> int:
        """What the tensors take that make it continue: memory, embeddings, kept latents, decoder. No rewind points."""
        tensors = snapshot_tensors(self._state, "exact").values()
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    # Prompts

    @property
    def prompt(self) -> str | list[str] | None:
        """As it was given: the pending one, else the current one; None if embeddings were given."""
        state = self._state
        given = (state.prompts if state.change is None else state.change.prompts).given
        return list(given) if isinstance(given, tuple) else given

    @prompt.setter
    def prompt(self, prompt: str | Sequence[str]) -> None:
        self.change_prompt(prompt)

    def change_prompt(self, prompt: str | Sequence[str], mode: ChangeMode | None = None) -> None:
        """Another prompt from the next block on. It is embedded, and checked, now.

        Args:
            prompt: for all samples, or one for each.
            mode: ``"soft"``, ``"refresh"`` or ``"cut"``, see :class:`arl2.streams.prompt_change.PromptChange`; None: as
                the model's settings say.

        Raises:
            StreamError: an empty prompt, or another number of them than samples; the stream keeps its prompt.
            ConfigError: an unknown mode.
            Arl2Error: a prompt that the text part refuses.
        """
        state, components = self._state, self._config.components
        mode = components.settings.prompt_change if mode is None else mode
        if mode not in CHANGE_MODES:
            raise ConfigError(f"Got prompt change mode {mode!r}; give one of {', '.join(CHANGE_MODES)}.")
        prompts = prompt_list(prompt)
        if any(not one.strip() for one in prompts):
            raise StreamError("The new prompt is empty; give words. The stream keeps the prompt it has.")
        batch = state.rollout.batch
        if len(prompts) != batch and not isinstance(prompt, str):
            raise StreamError(f"Got {len(prompts)} prompts for {batch} samples; give one for all, or one each.")
        with torch.no_grad():
            text = components.text.encode(prompts)
        state.change = PromptChange(state.prompts.changed(prompt, text.expand(batch, -1, -1)), mode)

    # Snapshots, forks, rewinding

    def save(self, path: str | Path, kind: SnapshotKind = "exact") -> None:
        """Write a snapshot for ``ARL2Pipeline.resume``; an existing file is replaced atomically.

        Of several ranks all call it and the first one writes; any number of ranks resumes the file. Rewind points are
        not in it: a resumed stream can be rewound by the blocks it has generated since.

        Args:
            path: ``.arl2`` by custom.
            kind: ``"exact"``: states, windows, decoder; later blocks have the same bits. ``"light"``: states and the
                latents of the last window (21 frames without one); windows and decoder are warmed up from these.
                Latents then differ by what the oldest of them knew of still older ones: not at all where every layer is
                hybrid; 5e-3 in the first block of the softmax shapes model (67 dB in pixels, 46 dB six blocks later);
                much where ``window=None`` and more than 21 frames have passed, which a warning says.

        Raises:
            StreamError: a block is not decoded yet, or the stream is closed.
            ConfigError: an unknown kind.
            SnapshotError: a path that cannot be written.
        """
        with self._turn:
            save_stream(Path(path), self._config, self._between_blocks("saved"), kind)

    def stage(self, path: str | Path, kind: SnapshotKind = "exact") -> StagedFile:
        """As ``save``, but the file takes its place when it is published: once others have what the stream has shown.

        Raises:
            StreamError, ConfigError, SnapshotError: as ``save``.
        """
        with self._turn:
            return stage_stream(Path(path), self._config, self._between_blocks("saved"), kind)

    def save_bytes(self, kind: SnapshotKind = "exact") -> bytes:
        """As ``save``, but into memory, for ``ARL2Pipeline.resume_bytes``.

        Of a running stream fork it between two blocks, and save the fork on another thread: the stream waits only for
        the fork.

        Raises:
            StreamError, ConfigError: as ``save``.
        """
        with self._turn:
            return stream_bytes(self._config, self._between_blocks("saved"), kind)

    def fork(self, *, seed: Seeds = None) -> "Stream":
        """An independent stream that continues from here; with the same seeds it gives the same bits.

        Args:
            seed: for another continuation, as for ``ARL2Pipeline.stream``.

        Raises:
            StreamError: a block is not decoded yet, or the stream is closed.
            ConfigError: seeds that do not fit.
        """
        with self._turn:
            state = self._between_blocks("forked")
            noise = self._noise(state, seed)
            twin = state.fork()
        twin.reseed(noise)
        return Stream(self._config, twin)

    def rewind(self, blocks: int = 1, *, seed: Seeds = None) -> None:
        """Go back to before the last ``blocks`` blocks.

        With the same prompt and seed the same blocks follow: to the bit with ``rewind_kind="exact"``, or where every
        layer is hybrid; otherwise as near as after a light snapshot, see :meth:`save`. Prompt, seeds and pending
        conditioning frames are those of that time; a pending prompt stays pending. After an error the block that failed
        counts as the last one.

        Args:
            blocks: 1 to ``rewind_blocks``.
            seed: for another continuation, as for ``ARL2Pipeline.stream``.

        Raises:
            StreamError: further than is kept, a block that is not decoded yet, or a closed stream.
            ConfigError: seeds that do not fit.
        """
        with self._turn:
            self._rewind(whole("blocks", blocks), seed)

    def _rewind(self, blocks: int, seed: Seeds) -> None:
        state = self._state
        if state.whole and state.undecoded is None:
            self._between_blocks("rewound")
        if not 1 <= blocks <= len(state.points):
            raise StreamError(
                f"Got {blocks} blocks to rewind by, but the stream keeps {len(state.points)}; give 1 to that, or begin "
                "it with more rewind_blocks."
            )
        point, decoded = state.points[-blocks], state.decoded
        if point.index > decoded:
            raise StreamError(f"Block {decoded} is not decoded yet; rewind by more blocks, or decode it first.")
        noise = self._noise(state, seed)
        state.go_back(point, self._config)
        state.cut = point.cut or point.index < decoded
        state.reseed(noise)

    def extend_with(self, frames: RealFrames) -> None:
        """Real frames come next: they are committed to memory, and yielded as blocks with 0 seconds of denoising.

        They are encoded as a continuation of the last video frames, see :func:`arl2.streams.real_frames.encode_next`.

        Args:
            frames: ``[B, 3, F, height, width]`` in [-1, 1], or bytes ``[F, height, width, 3]``, of the stream's size
                and rate; one video serves all samples. They must fill whole blocks.

        Raises:
            GeometryError: frames that do not fit; the message names the nearest numbers that do.
            StreamError: a block is not decoded yet, or the stream is closed.
        """
        state, codec, plan = self._between_blocks("extended"), self._config.components.codec, self._config.plan
        rollout, factor = state.rollout, self._config.components.codec.spatial_factor
        height, width = factor * rollout.settings.height, factor * rollout.settings.width
        video = as_video(frames, batch=rollout.batch, height=height, width=width)
        position = rollout.frames + sum(one.latents.shape[2] for one in state.pending)
        sizes = whole_block_frames(
            video.shape[2],
            at=position,
            block_frames=rollout.block_frames,
            first_block_frames=rollout.settings.first_block_frames,
            temporal_factor=codec.temporal_factor,
        )
        if plan is not None and position + sum(sizes) > plan.latent_frames:
            raise GeometryError(
                f"{video.shape[2]} more video frames are longer than the {plan.requested} requested; give fewer."
            )
        before = [block.latents for block in state.recent.last] + [one.latents for one in state.pending]
        latents = encode_next(codec, video, before).to(rollout.device)
        state.pending += pending_blocks(latents, sizes, cut=position > 0)

    # Closing

    def close(self) -> None:
        """Release everything; closing twice is fine."""
        self._now = None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._now is None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _state(self) -> StreamState:
        if self._now is None:
            raise StreamError("This stream is closed; begin another, or resume a snapshot of it.")
        return self._now

    def _between_blocks(self, done: str) -> StreamState:
        """The state, when nothing is in progress."""
        state = self._state
        if not state.whole:
            raise StreamError(_BROKEN)
        if state.decoded != state.index:
            raise StreamError(
                f"The stream cannot be {done} now: block {state.decoded} is not decoded yet, and block "
                f"{state.index} is next; decode the block of latents_next first."
            )
        return state

    @staticmethod
    def _noise(state: StreamState, seed: Seeds) -> SeededNoise | None:
        """Checked before anything changes."""
        return None if seed is None else SeededNoise(seeds_of(seed, None, state.rollout.batch))

    def _video_frames_before(self, frame: int) -> int:
        return video_frames_of(0, frame, self._config.components.codec.temporal_factor)
