"""States that nothing was written to: layers skip their read, which changes nothing but the time."""

import pytest
import torch

from arl2.attention.kind import Access
from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.errors import NonFiniteError
from arl2.kernels.rope import Rotation, rope_angles
from arl2.rollout import FewStep, SeededNoise, generate_blocks
from support import randn, tiny_model

FORMS = {
    "hybrid": ("H", {}),
    "additive": ("W", {}),
    "interpolated": ("W", {"mixing": "interpolated"}),
    "weighed": ("K", {"mixing": "log-sum-exp", "normalized_read": True}),
    "evicted": ("G", {"over": "evicted"}),
    "block": ("V", {"sees": "block", "rotation": "none"}),
}
TEXT = randn(1, 5, 10)


def model_of(form: str, **changes):
    plan, state_form = FORMS[form]
    return tiny_model(plan, **{"window": 6, "state_rank": 2, "ffn_rank": 2, "state_form": state_form, **changes})


def memory_of(model, batch: int = 1):
    return model.allocate_memory(batch=batch, height=4, width=6)


def committed(model, memory, seed: int = 0):
    with torch.no_grad():
        model.commit(randn(1, 3, 2, 4, 6, seed=seed), torch.zeros(1, 2), TEXT, memory)
    return memory


@pytest.mark.parametrize("form", FORMS)
def test_a_skipped_read_is_the_read_of_zeros(form):
    model = model_of(form).double()  # in float64 both ways are the same computation
    attention, x = model.layers[0].self_attention, randn(2, 12, 24, dtype=torch.float64)
    rotation = Rotation(rope_angles(range(2), 2, 3, 12))
    blank, zeros = memory_of(model, 2).layers[0], memory_of(model, 2).layers[0]
    for _ in range(3):
        zeros.write(torch.zeros(2, 2, 12, 12))
    assert blank.is_blank
    assert not zeros.is_blank
    with torch.no_grad():
        skipped = attention.stream(x, rotation, blank, Access.READ)
        assert torch.equal(skipped, attention.stream(x, rotation, zeros, Access.READ))
        # Not for want of a gate: what is written is read.
        attention.stream(x, rotation, blank, Access.COMMIT)
        for layer in (blank, zeros):
            layer.advance(2)
        if form != "evicted":
            assert not torch.equal(attention.stream(x, rotation, blank, Access.READ), skipped)


@pytest.mark.parametrize(("form", "blocks"), [("hybrid", 1), ("additive", 1), ("block", 1), ("evicted", 3)])
def test_a_memory_is_blank_until_what_is_read_was_written(form, blocks):
    model = model_of(form)
    memory = memory_of(model)
    for block in range(blocks):
        assert memory.is_blank
        assert memory.clone().is_blank
        assert not memory.is_steady  # a pass that is recorded now would never read
        committed(model, memory, block)
    assert not memory.is_blank
    assert not memory.clone().is_blank


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "fill",
    [
        lambda memory, other: memory.restore(other.tensors(), other.facts()),
        lambda memory, other: memory.restore_states(other.states()),
        lambda memory, other: memory.fill_random(4),
    ],
    ids=["restored", "states restored", "random"],
)
def test_what_was_filled_from_elsewhere_is_read(form, fill):
    model = model_of(form)
    memory, other = memory_of(model), memory_of(model)
    for block in range(3):
        committed(model, other, block)
    fill(memory, other)
    assert not memory.is_blank


def test_a_lagging_state_that_is_taken_back_is_blank_again():
    model = model_of("evicted")
    memory = committed(model, committed(model, memory_of(model)))
    memory.layers[0].take_back_states()
    for _ in range(3):
        assert memory.is_blank
        committed(model, memory)
    assert not memory.is_blank


def test_parameters_of_a_read_of_nothing_have_gradients():
    model = model_of("hybrid")
    model.predict(randn(1, 3, 2, 4, 6), torch.zeros(1, 2), TEXT, memory_of(model)).sum().backward()
    gate = model.layers[0].self_attention.gate_proj.weight.grad
    assert gate is not None
    assert not gate.any()


@pytest.mark.parametrize("form", ["hybrid", "evicted"])
def test_going_back_to_the_start_is_blank_again(form):
    model = model_of(form)
    memory = memory_of(model)
    start = memory.tensors(), memory.facts()
    for block in range(3):
        committed(model, memory, block)
    memory.restore(*start)
    assert memory.is_blank


@pytest.mark.parametrize("form", ["hybrid", "evicted"])
def test_a_broken_weight_that_the_first_block_does_not_use_is_named(form):
    model = model_of(form)
    with torch.no_grad():
        model.layers[0].self_attention.gate_proj.weight[0, 0] = torch.nan
    sampler = FewStep(StepPlan.from_steps([1000], schedule=NoiseSchedule()))
    blocks = generate_blocks(model, TEXT, noise=SeededNoise([1]), sampler=sampler, height=4, width=6, frames=12)
    next(blocks)
    with pytest.raises(NonFiniteError, match=r"1 weight tensors contain NaN or infinity, first layers\.0\.self_att"):
        list(blocks)
