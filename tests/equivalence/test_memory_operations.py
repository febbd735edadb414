"""Whatever is done to a memory and undone again, the stream goes on with the bits of one that was left alone."""

import gc

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.attention.memory import Memory
from support import randn, tiny_model

MODELS = [
    tiny_model("SH", window=5, sink=2, sink_positions="relative"),
    tiny_model("HS", window=4, sink=1),
    tiny_model("S", window=6, block_frames=1),
    tiny_model("SH"),
]


class Streamed:
    """A stream of one model; every operation but ``block`` leaves its past as it was."""

    def __init__(self, model) -> None:
        self.model, self.text = model, model.prompt_context(randn(1, 5, 10))
        self.memory, self.flows = self.fresh(), []
        self.kept: list[tuple[Memory, str]] = []

    def fresh(self) -> Memory:
        return self.model.allocate_memory(batch=1, height=4, width=6)

    def passes(self, memory: Memory, seed: int) -> torch.Tensor:
        frames = self.model.config.block_frames
        x, level = randn(1, 3, frames, 4, 6, seed=seed), torch.full((1, frames), 700.0)
        flow = self.model.predict(x, level, self.text, memory)
        self.model.commit(x, torch.zeros(1, frames), self.text, memory)
        return flow

    def block(self) -> None:
        self.flows.append(self.passes(self.memory, len(self.flows)))

    def wander(self, memory: Memory) -> None:
        """Somewhere else altogether."""
        memory.begin_at(memory.frames // 2, keep_sinks=bool(len(self.flows) % 2))
        memory.scale_states(0.5)
        for seed in (101, 102):
            self.passes(memory, seed)

    def fork_and_stay(self) -> None:
        self.wander(self.memory.clone())

    def fork_and_go_on_with_the_fork(self) -> None:
        old, self.memory = self.memory, self.memory.clone()
        self.wander(old)

    def fork_and_forget(self) -> None:
        self.memory.clone()
        gc.collect(0)

    def keep_a_fork(self) -> None:
        self.kept.append((self.memory.clone(), self.memory.fingerprint()))

    def wander_and_restore(self) -> None:
        tensors, facts = self.memory.tensors(), self.memory.facts()
        self.wander(self.memory)
        self.memory.restore(tensors, facts)

    def move_to_fresh_memory(self) -> None:
        fresh = self.fresh()
        fresh.restore(self.memory.tensors(), self.memory.facts())
        self.memory = fresh

    def swap_states(self) -> None:
        states = self.memory.states()
        self.memory.scale_states(0.0)
        self.memory.restore_states(states)


UNDONE = [name for name in vars(Streamed) if not name.startswith("_")]
UNDONE = [name for name in UNDONE if name not in ("fresh", "passes", "wander")]


@settings(deadline=None, max_examples=10)
@given(model=st.sampled_from(MODELS), operations=st.lists(st.sampled_from([*UNDONE, "block"]), max_size=10))
@torch.no_grad()
def test_a_stream_keeps_its_bits(model, operations):
    busy, straight = Streamed(model), Streamed(model)
    for name in [*operations, "block", "block"]:
        getattr(busy, name)()
    while len(straight.flows) < len(busy.flows):
        straight.block()
    assert all(torch.equal(a, b) for a, b in zip(straight.flows, busy.flows, strict=True))
    assert busy.memory.fingerprint() == straight.memory.fingerprint()
    assert busy.memory.nbytes == straight.memory.nbytes
    assert all(fork.fingerprint() == was for fork, was in busy.kept)
