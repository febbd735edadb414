"""Memory that is put away and taken up again: bit-exact, or refused with one sentence."""

import copy
import functools
import json

import pytest
import torch

from arl2.attention.memory import Memory
from arl2.errors import MemoryMismatchError
from support import randn, relative, tiny_model

WINDOWS = [
    {"window": None},
    {"window": 5},
    {"window": 4, "sink": 2},
    {"window": 5, "sink": 1, "sink_positions": "relative"},
]


def memory_of(model, **changes) -> Memory:
    return model.allocate_memory(**{"batch": 2, "height": 4, "width": 6} | changes)


@torch.no_grad()
def run(model, memory: Memory, blocks: range | list[int]) -> list[torch.Tensor]:
    """Predict and commit some blocks."""
    text = model.prompt_context(randn(2, 5, 10))
    flows = []
    for i in blocks:
        x = randn(2, 3, 2, 4, 6, seed=i)
        flows.append(model.predict(x, torch.full((2, 2), 700.0), text, memory))
        model.commit(x, torch.zeros(2, 2), text, memory)
    return flows


@functools.cache
def two_memories() -> tuple[Memory, Memory]:
    """Of one model with relative sinks, each with a past of its own; use clones."""
    model = tiny_model("SH", **WINDOWS[3])
    one, other = memory_of(model), memory_of(model)
    run(model, one, range(3))
    run(model, other, range(5, 10))
    return one, other


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("blocks", [0, 1, 6])
def test_goes_on_with_the_same_bits(window, blocks):
    model = tiny_model("SH", **window)
    memory = memory_of(model)
    run(model, memory, range(blocks))
    tensors, facts = memory.tensors(), json.loads(json.dumps(memory.facts()))
    straight = run(model, memory, range(blocks, blocks + 2))
    fresh, used = memory_of(model), memory_of(model)
    run(model, used, range(20, 25))
    where = used.layers[1].state.data_ptr()
    for other in (fresh, used):
        other.restore(tensors, facts)
        again = run(model, other, range(blocks, blocks + 2))
        assert all(torch.equal(a, b) for a, b in zip(straight, again, strict=True))
        assert other.fingerprint() == memory.fingerprint()
        assert other.facts() == memory.facts()
    assert used.layers[1].state.data_ptr() == where  # in place


def test_tensors_are_copies_without_spare_room():
    model = tiny_model("SH", window=6)
    memory = memory_of(model)
    run(model, memory, [0])
    tensors = memory.tensors()
    assert {name: list(x.shape) for name, x in tensors.items()} == {
        "layers.0.keys": [2, 12, 2, 12],
        "layers.0.values": [2, 12, 2, 12],
        "layers.1.state": [2, 2, 12, 12],
    }
    assert all(x.is_contiguous() for x in tensors.values())
    before = memory.fingerprint()
    for x in tensors.values():
        x.zero_()
    assert memory.fingerprint() == before


def test_states_alone():
    model = tiny_model("HSH", window=4)
    memory, other = memory_of(model), memory_of(model)
    run(model, memory, range(3))
    states = memory.states()
    assert list(states) == ["layers.0.state", "layers.2.state"]
    run(model, other, [7])
    window = {name: x for name, x in other.tensors().items() if name not in states}
    other.restore_states(states)
    after = other.tensors()
    assert all(torch.equal(after[name], x) for name, x in {**states, **window}.items())
    assert other.frames == 2
    other.scale_states(0.25)
    assert all(torch.equal(other.states()[name], x / 4) for name, x in states.items())
    with pytest.raises(MemoryMismatchError, match=r"finite number from 0; got -1\.0"):
        other.scale_states(-1.0)
    with pytest.raises(MemoryMismatchError, match=r"lacks layers\.2\.state"):
        other.restore_states({"layers.0.state": states["layers.0.state"]})
    with pytest.raises(MemoryMismatchError, match="float64"):
        other.restore_states({name: x.double() for name, x in states.items()})


@pytest.mark.parametrize("sinks", [{}, {"sink": 3}, {"sink": 3, "sink_positions": "relative"}])
def test_windows_are_primed_again_by_clean_passes(sinks):
    """One softmax layer: its keys depend on their own block alone, so priming gives back all that was there."""
    window = 7 + sinks.get("sink", 0)
    model = tiny_model("S", window=window, **sinks)
    memory = memory_of(model)
    run(model, memory, range(7))
    primed = memory.clone()
    # Up to six past frames are seen: they reach back three blocks.
    primed.begin_at(memory.frames - 6, keep_sinks=True)
    run(model, primed, range(4, 7))
    assert primed.frames == memory.frames == 14
    for ours, straight in zip(run(model, primed, range(7, 9)), run(model, memory, range(7, 9)), strict=True):
        assert relative(ours, straight) < 1e-5


HOSTILE = [
    (lambda f: f.pop("start"), "geometry, frames, start, layers"),
    (lambda f: f.update(more=1), "geometry, frames, start, layers"),
    (lambda f: f.update(frames=-1), "whole frame number from 0"),
    (lambda f: f.update(frames=6.0), "whole frame number from 0"),
    (lambda f: f.update(frames=True), "whole frame number from 0"),
    (lambda f: f.update(frames=10**400), "whole frame number from 0"),
    (lambda f: f.update(frames="6"), "whole frame number from 0"),
    (lambda f: f.update(start=7), "began at or before it"),
    (lambda f: f.update(start=None), "began at or before it"),
    (lambda f: f.update(frames=8), "the latest frames before 8"),
    (lambda f: f["geometry"].update(rows=3), "allocate memory for these sizes"),
    (lambda f: f.update(geometry=[1]), "allocate memory for these sizes"),
    (lambda f: f["layers"].pop(), "has 2 layers"),
    (lambda f: f.update(layers={"0": 1}), "has 2 layers"),
    (lambda f: f["layers"].reverse(), "saved as"),
    (lambda f: f["layers"].__setitem__(0, None), "saved as None"),
    (lambda f: f["layers"][1].update(more=1), "keeps state of constant size"),
    (lambda f: f["layers"][0].update(window=9), "has window 5, but it was saved with 9"),
    (lambda f: f["layers"][0].update(sink=True), "has sink 1, but it was saved with True"),
    (lambda f: f["layers"][0].update(sink_positions="absolute"), "sink_positions 'relative'"),
    (lambda f: f["layers"][0].update(slots="034"), "must be a list"),
    (lambda f: f["layers"][0].update(slots=[0, 4.0, 5]), "must be a list"),
    (lambda f: f["layers"][0].update(slots=[0, 4, 4]), "the latest frames before 6"),
    (lambda f: f["layers"][0].update(slots=[5, 4, 3]), "the latest frames before 6"),
    (lambda f: f["layers"][0].update(slots=[4, 4, 5]), "the latest frames before 6"),
    (lambda f: f["layers"][0].update(slots=[-(10**400), 4, 5]), "the latest frames before 6"),
    (lambda f: f["layers"][0].update(slots=[0, 2, 3, 4, 5]), "keeps 3 past frames, got 5"),
    (lambda f: f["layers"][0].update(slots=[0, 5]), r"layers\.0\.keys is \[2, 18, 2, 12\]"),
]


@pytest.mark.parametrize(("harm", "said"), HOSTILE)
def test_facts_that_make_no_sense_change_nothing(harm, said):
    memory, other = (own.clone() for own in two_memories())
    facts = copy.deepcopy(memory.facts())
    harm(facts)
    before = other.fingerprint()
    with pytest.raises(MemoryMismatchError, match=said):
        other.restore(memory.tensors(), facts)
    assert other.fingerprint() == before
    other.restore(memory.tensors(), memory.facts())
    assert other.fingerprint() == memory.fingerprint()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda t: t.pop("layers.1.state"), r"lacks layers\.1\.state"),
        (lambda t: t.update({"layers.9.state": t["layers.1.state"]}), r"has layers\.9\.state too many"),
        (lambda t: t.update({"layers.1.state": t["layers.1.state"][:, :1]}), r"state is \[2, 1, 12, 12\]"),
        (lambda t: t.update({"layers.1.state": t["layers.1.state"].bfloat16()}), "state is .* in torch.bfloat16"),
        (lambda t: t.update({"layers.0.keys": t["layers.0.keys"].half()}), "keys is .* in torch.float16"),
        (lambda t: t.update({"layers.0.values": t["layers.0.values"][:, :-1]}), r"values is \[2, 17, 2, 12\]"),
        (lambda t: t.update({"layers.0.sink_keys": t["layers.0.keys"]}), r"sink_keys is \[2, 18, 2, 12\]"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(harm, said):
    memory, other = (own.clone() for own in two_memories())
    tensors, before = memory.tensors(), other.fingerprint()
    harm(tensors)
    with pytest.raises(MemoryMismatchError, match=said):
        other.restore(tensors, memory.facts())
    assert other.fingerprint() == before


@pytest.mark.parametrize(
    ("plan", "changes", "said"),
    [
        ("HS", {}, "keeps state of constant size, but it was saved as"),
        ("SH", {"sink_positions": "absolute"}, "has sink_positions 'absolute', but it was saved with 'relative'"),
        ("SH", {"sink": 2}, "has sink 2, but it was saved with 1"),
        ("SH", {"window": 6}, "has window 6, but it was saved with 5"),
        ("SH", {"batch": 1}, "allocate memory for these sizes"),
        ("SH", {"height": 6}, "allocate memory for these sizes"),
    ],
)
def test_memory_of_another_model_window_or_size_is_refused(plan, changes, said):
    memory, _ = two_memories()
    other = memory_of(tiny_model(plan, **WINDOWS[3]), **changes)
    with pytest.raises(MemoryMismatchError, match=said):
        other.restore(memory.tensors(), memory.facts())


def test_memory_that_broke_off_half_way_is_not_saved():
    model = tiny_model("SH")
    memory = memory_of(model)
    memory.is_whole = False  # as while a cache-update pass writes
    for save in (memory.tensors, memory.facts):
        with pytest.raises(MemoryMismatchError, match="broke off half-way"):
            save()
