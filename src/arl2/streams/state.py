"""The state of a stream between two blocks, and its config, which never changes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from arl2.attention.memory import Memory
from arl2.rollout.blocks import Block
from arl2.rollout.denoise import Rollout
from arl2.rollout.frames import FramePlan
from arl2.rollout.noise import SeededNoise
from arl2.streams.cache_warmup import states_of, warm_up_decoder, warm_up_memory
from arl2.streams.components import Components
from arl2.streams.model_hash import model_metadata
from arl2.streams.prompt_change import PromptChange, apply_prompts
from arl2.streams.recent import PendingBlock, Prompts, Recent, RewindPoint
from arl2.streams.request import MemoryShape
from arl2.video.codec import CodecCache

SnapshotKind = Literal["light", "exact"]


@dataclass(frozen=True)
class StreamConfig:
    """What stays the same for the whole life of a stream.

    Attributes:
        components: of the pipeline.
        shape: of its memories.
        plan: its length; None for a continuous stream.
        rewind_blocks: how many blocks it can be rewound by.
        rewind_kind: what is kept for that.
    """

    components: Components
    shape: MemoryShape
    plan: FramePlan | None
    rewind_blocks: int
    rewind_kind: SnapshotKind

    @cached_property
    def model(self) -> dict[str, str]:
        """A snapshot's metadata of the model; computed once, as weights do not change while a stream runs."""
        return model_metadata(self.components.transformer, self.components.codec)

    def name_with(self, seeds: Sequence[int], prompt: str | Sequence[str] | None) -> str:
        """Of model, seeds and a prompt, 24 hexadecimal digits; what has another name shows something else.

        The first eight are of model and seeds alone, and stay the same in a stream whose prompt changes.
        """
        said = [self.model["hash"], list(seeds), prompt]
        origin, whole = (hashlib.sha256(json.dumps(part).encode()).hexdigest() for part in (said[:2], said))
        return origin[:8] + whole[:16]


@dataclass
class StreamState:
    """Tensors that rewind points share are never written; memories and decoder belong to the state alone.

    Attributes:
        rollout: current prompts, memories and noise.
        seeds: of the samples.
        prompts: current.
        recent: latents of the last blocks.
        decoder: the codec's feature cache.
        decoded: number of the next block to decode.
        pending: conditioning blocks that come next.
        change: a prompt for the next block.
        cut: whether the next block does not continue the one before it.
        points: right before each of the last blocks, oldest first.
        decoders: for exact points, by block: the decoder before it.
        undecoded: a block of ``next`` whose decoding failed or is in progress.
    """

    rollout: Rollout
    seeds: tuple[int, ...]
    prompts: Prompts
    recent: Recent
    decoder: CodecCache
    decoded: int = 0
    pending: tuple[PendingBlock, ...] = ()
    change: PromptChange | None = None
    cut: bool = False
    points: tuple[RewindPoint, ...] = ()
    decoders: dict[int, CodecCache] = field(default_factory=dict)
    undecoded: Block | None = None

    @property
    def index(self) -> int:
        """Number of the next block."""
        return self.rollout.next_block()[0]

    @property
    def whole(self) -> bool:
        """Whether memory ends where the latents do, in every layer: no pass failed half-way."""
        end = self.recent.last[-1].frames.stop if self.recent.last else 0
        return all(memory.is_whole and memory.frames == end for memory in self.rollout.memories)

    def fork(self) -> "StreamState":
        """A copy that continues from here: states and decoder copied, windows copied on write, the rest shared."""
        prompted = [replace(one, memory=one.memory.clone()) for one in self.rollout.prompted]
        own = self.rollout
        rollout = Rollout(
            own.model, prompted, noise=own.noise, settings=own.settings, first_generated=own.first_generated
        )
        return replace(self, rollout=rollout, decoder=self.decoder.clone(), decoders=dict(self.decoders))

    def point(self, config: StreamConfig) -> RewindPoint:
        """A rewind point right before the next block."""
        light = config.rewind_kind == "light"
        return RewindPoint(
            index=self.index,
            frames=self.rollout.frames,
            seeds=self.seeds,
            prompts=self.prompts,
            recent=self.recent,
            pending=self.pending,
            cut=self.cut,
            states=states_of(self.rollout) if light else (),
            memories=() if light else tuple(memory.clone() for memory in self.rollout.memories),
        )

    def go_back(self, point: RewindPoint, config: StreamConfig) -> None:
        """Restore a rewind point; a pending prompt stays pending."""
        # Even if they are the same: a change that failed half-way may have applied others.
        apply_prompts(self.rollout, point.prompts)
        if point.memories:
            self.take_memories(tuple(memory.clone() for memory in point.memories))
            if point.index < self.decoded:
                self.decoder = self.decoders[point.index].clone()
        else:
            warm_up_memory(self.rollout, point.recent, point.states, frames=point.frames)
            self.decoder = warm_up_decoder(config.components.codec, point.recent)
        self.seeds, self.prompts, self.recent = point.seeds, point.prompts, point.recent
        self.rollout.noise = SeededNoise(point.seeds)
        self.rollout.forget_from(point.index)
        self.pending, self.decoded, self.undecoded = point.pending, point.index, None
        self.points = tuple(one for one in self.points if one.index < point.index)
        self.decoders = {index: cache for index, cache in self.decoders.items() if index < point.index}

    def reseed(self, noise: SeededNoise | None) -> None:
        """Other seeds from the next block on; None changes nothing."""
        if noise is not None:
            self.seeds, self.rollout.noise = noise.seeds, noise

    def take_memories(self, memories: tuple[Memory, ...]) -> None:
        """Replace the memories, under the same prompts."""
        pairs = zip(self.rollout.prompted, memories, strict=True)
        self.rollout.prompted = tuple(replace(one, memory=memory) for one, memory in pairs)
