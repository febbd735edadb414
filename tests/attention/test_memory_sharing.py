"""Clones share their windows until somebody writes."""

import gc

import pytest
import torch

from arl2.attention.memory import Memory
from support import randn, tiny_model

SINKS = {"window": 5, "sink": 1, "sink_positions": "relative"}


def stream(blocks: int):
    """A model, its memory after some blocks, and the two kinds of pass."""
    model = tiny_model("HS", **SINKS)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    text = model.prompt_context(randn(1, 5, 10))

    @torch.no_grad()
    def run(into: Memory, seed: int, commit: bool = True):
        run = model.commit if commit else model.predict
        return run(randn(1, 3, 2, 4, 6, seed=seed), torch.zeros(1, 2), text, into)

    for seed in range(blocks):
        run(memory, seed)
    return memory, run


def places(memory: Memory) -> list[int]:
    return [tensor.data_ptr() for layer in memory.layers for tensor in layer.held().values()]


def window_bytes(memory: Memory) -> int:
    return memory.layers[1].nbytes


def test_a_fork_copies_its_states_and_nothing_else():
    memory, _ = stream(3)
    fork = memory.clone()
    assert places(fork)[0] != places(memory)[0]
    assert places(fork)[1:] == places(memory)[1:]
    assert fork.shared == memory.shared == window_bytes(memory) < memory.nbytes == fork.nbytes
    twice = fork.clone()
    assert places(twice)[1:] == places(memory)[1:]


def test_a_fork_that_is_dropped_costs_nothing():
    memory, run = stream(3)
    where = places(memory)
    fork = memory.clone()
    del fork
    gc.collect()
    assert memory.shared == 0
    for seed in range(4):
        run(memory, seed)
        assert places(memory) == where


@pytest.mark.parametrize("commit", [False, True])
@pytest.mark.parametrize("first", ["original", "fork"])
def test_the_first_that_writes_takes_the_copy(first, commit):
    memory, run = stream(3)
    fork = memory.clone()
    writer, other = (memory, fork) if first == "original" else (fork, memory)
    shared, before = places(memory)[1:], other.fingerprint()
    run(writer, 7, commit)
    assert set(places(writer)[1:]).isdisjoint(shared)
    assert places(other)[1:] == shared
    assert other.fingerprint() == before
    assert writer.shared == other.shared == 0
    # From here on each writes in place.
    own = places(writer)
    for seed in range(3):
        run(writer, seed)
        run(other, seed)
    assert places(writer) == own
    assert places(other)[1:] == shared


def test_of_three_two_go_on_sharing():
    memory, run = stream(4)
    one, two = memory.clone(), memory.clone()
    run(memory, 5, commit=False)
    assert memory.shared == 0
    assert one.shared == two.shared == window_bytes(one)
    del two
    gc.collect()
    assert one.shared == 0


def test_reading_with_gradients_copies_nothing():
    memory, _ = stream(3)
    fork = memory.clone()
    with torch.enable_grad():
        fork.layers[1].with_block(randn(1, 12, 2, 12), randn(1, 12, 2, 12))
    assert fork.shared == memory.shared == window_bytes(memory)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.begin_at(3, keep_sinks=True),
        lambda m: m.move_origin(2),
        lambda m: m.scale_states(0.5),
        lambda m: m.restore(m.tensors(), m.facts()),
        lambda m: m.restore_states({name: 2 * x for name, x in m.states().items()}),
    ],
)
def test_no_change_of_one_reaches_the_other(change):
    memory, run = stream(4)
    fork = memory.clone()
    before = memory.fingerprint()
    change(fork)
    run(fork, 3)
    assert memory.fingerprint() == before
    straight = memory.clone()
    change(memory)
    assert straight.fingerprint() == before


def test_caches_that_grow_are_copied_too():
    model = tiny_model("S")
    memory = model.allocate_memory(batch=1, height=4, width=6)
    text = model.prompt_context(randn(1, 5, 10))
    history = []
    with torch.no_grad():
        for seed in range(7):
            history.append((memory.clone(), memory.fingerprint()))
            model.commit(randn(1, 3, 2, 4, 6, seed=seed), torch.zeros(1, 2), text, memory)
    assert all(old.fingerprint() == was for old, was in history)
