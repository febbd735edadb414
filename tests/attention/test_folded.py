"""Products that are folded into one: the same numbers, whatever happens to the weights."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arl2.attention.lora import LoRALinear
from support import randn, relative, tiny_model

TEXT = randn(1, 5, 10)
BLOCKS = [randn(1, 3, 2, 4, 6, seed=i) for i in range(3)]


def model_of(plan: str, seed: int = 0, **changes):
    sizes = {"window": 6, "state_rank": 2, "ffn_rank": 2, "ffn_rank_layers": "all", **changes}
    model = tiny_model(plan, seed, **sizes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".phi_" in name:
                parameter.mul_(4)  # as large as feature maps are that start as identities
    return model


@torch.no_grad()
def flows(model, dtype: torch.dtype = torch.float32):
    """Of blocks that are predicted and committed one after the other."""
    memory, text = model.allocate_memory(batch=1, height=4, width=6), model.prompt_context(TEXT.to(dtype))
    made = []
    for block in BLOCKS:
        made.append(model.predict(block.to(dtype), torch.full((1, 2), 500.0), text, memory))
        model.commit(block.to(dtype), torch.zeros(1, 2), text, memory)
    return torch.cat(made, dim=2)


def unfolded(model):
    """A copy with something that hooks into every layer, which has to be called itself."""
    twin = copy.deepcopy(model)
    for part in twin.modules():
        if isinstance(part, nn.Linear | LoRALinear):
            part.register_forward_hook(lambda layer, given, result: None)
    return twin


@settings(deadline=None, max_examples=6)
@given(
    plan=st.sampled_from(["H", "W", "K", "G", "V", "SH"]),
    rank=st.sampled_from([0, 2]),
    heads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_folded_products_are_as_exact_as_the_products_one_by_one(plan, rank, heads, seed):
    sizes = {"state_rank": rank, "ffn_rank": rank, "num_attention_heads": heads, "attention_head_dim": 16}
    model = model_of(plan, seed, **sizes)
    exact = flows(copy.deepcopy(model).double(), torch.float64)
    ours, plain = relative(flows(model), exact), relative(flows(unfolded(model)), exact)
    assert ours != plain  # it was folded
    assert ours < 2 * plain + 1e-6  # and both round alike


def test_features_too_small_to_do_without_the_norm_are_not_folded():
    model = model_of("H", ffn_rank=0)
    with torch.no_grad():
        model.layers[0].self_attention.shared.norm_q.weight.mul_(1e-3)
        model.layers[0].self_attention.shared.norm_k.weight.mul_(1e-3)
    assert torch.equal(flows(model), flows(unfolded(model)))


CHANGES = {
    "in place": lambda weight: weight.mul_(0.5),
    "storage": lambda weight: setattr(weight, "data", weight.detach() * 0.5),
    "through data": lambda weight: weight.data.mul_(0.5),
}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.0.ffn.up.linear.weight", "in place"),
        ("layers.0.ffn.down.change.B", "through data"),
        ("layers.0.self_attention.state.phi_v", "in place"),
        ("layers.0.self_attention.state.changes.v.A", "storage"),
        ("layers.1.self_attention.shared.to_k.weight", "through data"),
        ("layers.1.self_attention.gate_proj.weight", "in place"),
        ("layers.1.self_attention.shared.norm_q.weight", "storage"),
    ],
)
def test_a_weight_that_has_changed_is_folded_again(name, change):
    model = model_of("HW")
    before = flows(model)
    with torch.no_grad():
        CHANGES[change](model.get_parameter(name))
    fresh = model_of("HW")
    with torch.no_grad():
        fresh.get_parameter(name).mul_(0.5)
    after = flows(model)
    assert torch.equal(after, flows(fresh))
    assert relative(after, before) > 1e-4


@pytest.mark.parametrize("name", ["ffn.up.linear", "ffn.down", "self_attention.gate_proj"])
def test_a_layer_that_something_hooks_into_is_called(name):
    model, called = model_of("HW"), []
    before = flows(model)
    hook = model.layers[1].get_submodule(name).register_forward_hook(lambda *given: called.append(1))
    hooked = flows(model)
    assert len(called) >= 2
    assert 0 < relative(hooked, before) < 1e-5
    hook.remove()
    assert torch.equal(flows(model), before)


def test_what_is_saved_knows_nothing_of_it():
    model = model_of("HW")
    names, expected = list(model.state_dict()), flows(model)
    assert list(model.state_dict()) == names
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = model_of("HW", seed=1)
    flows(other)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(flows(other), expected)
    assert torch.equal(flows(copy.deepcopy(model)), expected)


def test_weights_without_a_count_of_their_changes_are_taken_as_they_are():
    with torch.inference_mode():
        model = model_of("HW")
    assert torch.equal(flows(model), flows(unfolded(model_of("HW"))))
