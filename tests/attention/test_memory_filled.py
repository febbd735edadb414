"""A memory filled with random numbers stands where a stream stands that was rolled out."""

import pytest
import torch

from arl2.attention.memory import Memory
from arl2.errors import MemoryMismatchError
from support import randn, tiny_model

CASES = [("HS", None, 0), ("SS", 6, 0), ("HS", 7, 3), ("HH", None, 0)]


def rolled_out(model, blocks: int, **options: object) -> Memory:
    memory = model.allocate_memory(batch=1, height=4, width=6, **options)
    text = model.prompt_context(randn(1, 5, 10))
    with torch.no_grad():
        for number in range(blocks):
            model.commit(randn(1, 3, 2, 4, 6, seed=number), torch.zeros(1, 2), text, memory)
    return memory


def positions(memory: Memory) -> list[object]:
    """Of every layer; in a ring the frames may lie in any order."""
    facts = memory.facts()
    layers = [
        {name: sorted(value) if name == "slots" else value for name, value in layer.items()}
        for layer in facts["layers"]
    ]
    return [facts["frames"], facts["start"], layers]


@pytest.mark.parametrize("positions_of_sinks", ["absolute", "relative"])
@pytest.mark.parametrize(("plan", "window", "sink"), CASES)
@pytest.mark.parametrize("blocks", [0, 1, 3, 9])
def test_positions_and_sizes_are_those_of_a_stream(plan, window, sink, blocks, positions_of_sinks):
    model = tiny_model(plan)
    options = {"window": window, "sink": sink, "sink_positions": positions_of_sinks}
    truth = rolled_out(model, blocks, **options)
    memory = model.allocate_memory(batch=1, height=4, width=6, **options)
    memory.fill_random(2 * blocks)
    assert positions(memory) == positions(truth)
    assert memory.nbytes == truth.nbytes
    assert {name: x.shape for name, x in memory.views().items()} == {n: x.shape for n, x in truth.views().items()}
    # What a snapshot of it holds is accepted, and goes on with the same bits.
    twin = model.allocate_memory(batch=1, height=4, width=6, **options)
    twin.restore(memory.tensors(), memory.facts())
    text, latents = model.prompt_context(randn(1, 5, 10)), randn(1, 3, 2, 4, 6, seed=99)
    for _ in range(3):
        with torch.no_grad():
            flows = [model.predict(latents, torch.full((1, 2), 500.0), text, one) for one in (memory, twin)]
            for one in (memory, twin):
                model.commit(latents, torch.zeros(1, 2), text, one)
        assert torch.isfinite(flows[0]).all()
        assert torch.equal(*flows)
    assert memory.frames == 2 * blocks + 6


def test_numbers_depend_on_the_seed_alone_and_replace_what_was_there():
    model = tiny_model("HS")
    fresh, used = (model.allocate_memory(batch=1, height=4, width=6, window=6) for _ in range(2))
    used.fill_random(30, seed=5)
    for one in (fresh, used):
        one.fill_random(14, seed=1)
    assert fresh.fingerprint() == used.fingerprint()
    used.fill_random(14, seed=2)
    assert fresh.fingerprint() != used.fingerprint()
    drawn = torch.cat([x.flatten() for x in fresh.tensors().values()])
    assert abs(float(drawn.mean())) < 0.1
    assert float(drawn.std()) == pytest.approx(1, abs=0.1)


def test_a_clone_keeps_what_it_had():
    model = tiny_model("SS")
    memory = model.allocate_memory(batch=1, height=4, width=6, window=6)
    memory.fill_random(10)
    twin, before = memory.clone(), memory.fingerprint()
    memory.fill_random(10, seed=3)
    assert twin.fingerprint() == before != memory.fingerprint()


@pytest.mark.parametrize("frames", [-1, True, 2**53])
def test_what_is_no_position_is_refused(frames):
    memory = tiny_model("S").allocate_memory(batch=1, height=4, width=6)
    with pytest.raises(MemoryMismatchError, match="a whole number of frames from 0; got"):
        memory.fill_random(frames)
