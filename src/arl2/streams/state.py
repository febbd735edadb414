"""Everything that a stream is at one moment, and what it is under for its whole life."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from arl2.attention.memory import Memory
from arl2.rollout.blocks import Block
from arl2.rollout.denoise import Rollout
from arl2.rollout.frames import FramePlan
from arl2.rollout.noise import SeededNoise
from arl2.streams.cache_warmup import prime_decoder, prime_memory, states_of
from arl2.streams.components import Components
from arl2.streams.model_hash import model_facts
from arl2.streams.prompt_change import PromptChange, apply_prompts
from arl2.streams.recent import PendingBlock, Prompts, Recent, RewindPoint
from arl2.streams.request import MemoryShape
from arl2.video.codec import CodecCache

SnapshotKind = Literal["light", "exact"]


@dataclass(frozen=True)
class StreamConfig:
    """What a stream is under from its first block to its last.

    Attributes:
        parts: of the pipeline.
        shape: that its memories are allocated with.
        plan: how long it is; None: endless.
        rewind_blocks: how many blocks it can be rewound by.
        rewind_kind: what is kept for that.
    """

    parts: Components
    shape: MemoryShape
    plan: FramePlan | None
    rewind_blocks: int
    rewind_kind: SnapshotKind

    @cached_property
    def model(self) -> dict[str, str]:
        """What a snapshot says of the model; read once, as the weights of a living stream do not change."""
        return model_facts(self.parts.transformer, self.parts.codec)


@dataclass
class StreamState:
    """Where a stream stands. Tensors that other moments share are never written; memories and decoder are its own.

    Attributes:
        rollout: prompts in force, memories and noise.
        seeds: of the samples.
        prompts: in force.
        recent: latents of the last blocks.
        decoder: what the codec remembers.
        decoded: number of the next block to decode.
        waiting: blocks to come, which are known.
        change: a prompt for the next block.
        cut: whether the next block does not go on from the one before it.
        points: right before each of the last blocks, oldest first.
        decoders: for exact points, by block: the decoder before it.
        undecoded: a block of ``next`` whose decoding failed or is under way.
    """

    rollout: Rollout
    seeds: tuple[int, ...]
    prompts: Prompts
    recent: Recent
    decoder: CodecCache
    decoded: int = 0
    waiting: tuple[PendingBlock, ...] = ()
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
        """Whether memory ends where the latents do, in every layer: no pass broke off half-way."""
        end = self.recent.last[-1].frames.stop if self.recent.last else 0
        memories = self.rollout.memories
        layers = {layer.frames for memory in memories for layer in memory.layers}
        return {end} == layers | {memory.frames for memory in memories}

    def fork(self) -> "StreamState":
        """Another that goes on from here: states and decoder copied, windows copied when written, the rest shared."""
        prompted = [replace(one, memory=one.memory.clone()) for one in self.rollout.prompted]
        rollout = Rollout(self.rollout.model, prompted, noise=self.rollout.noise, settings=self.rollout.settings)
        return replace(self, rollout=rollout, decoder=self.decoder.clone(), decoders=dict(self.decoders))

    def point(self, terms: StreamConfig) -> RewindPoint:
        """This moment, right before a block is made."""
        light = terms.rewind_kind == "light"
        return RewindPoint(
            index=self.index,
            frames=self.rollout.frames,
            seeds=self.seeds,
            prompts=self.prompts,
            recent=self.recent,
            waiting=self.waiting,
            cut=self.cut,
            states=states_of(self.rollout) if light else (),
            memories=() if light else tuple(memory.clone() for memory in self.rollout.memories),
        )

    def go_back(self, point: RewindPoint, terms: StreamConfig) -> None:
        """Be what it was at a point of the past; prompts that wait for the next block go on waiting."""
        # Even if they are the same: a change that broke off may have put others into force.
        apply_prompts(self.rollout, point.prompts)
        if point.memories:
            self.take_memories(tuple(memory.clone() for memory in point.memories))
            if point.index < self.decoded:
                self.decoder = self.decoders[point.index].clone()
        else:
            prime_memory(self.rollout, point.recent, point.states, frames=point.frames)
            self.decoder = prime_decoder(terms.parts.codec, point.recent)
        self.seeds, self.prompts, self.recent = point.seeds, point.prompts, point.recent
        self.rollout.noise = SeededNoise(point.seeds)
        self.waiting, self.decoded, self.undecoded = point.waiting, point.index, None
        self.points = tuple(one for one in self.points if one.index < point.index)
        self.decoders = {index: cache for index, cache in self.decoders.items() if index < point.index}

    def reseed(self, noise: SeededNoise | None) -> None:
        """Other seeds from the next block on; None: the same."""
        if noise is not None:
            self.seeds, self.rollout.noise = noise.seeds, noise

    def take_memories(self, memories: tuple[Memory, ...]) -> None:
        """Go on with other memories under the same prompts."""
        pairs = zip(self.rollout.prompted, memories, strict=True)
        self.rollout.prompted = tuple(replace(one, memory=memory) for one, memory in pairs)
