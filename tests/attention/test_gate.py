"""Gates compute in the dtype of their weights, whatever the tokens are in."""

import pytest
import torch

from arl2.attention.state_branch import Gate
from support import randn, relative, tiny_model

GATES = ("gate_proj", "state.decay_proj", "state.beta_proj")


@pytest.mark.parametrize("tokens", [torch.float32, torch.bfloat16])
def test_a_float32_gate_is_exact_on_half_precision_tokens(tokens):
    gate, x = Gate(24, 2), randn(1, 6, 24).to(tokens)
    out = gate(x)
    assert out.dtype == torch.float32
    exact = x.double() @ gate.weight.detach().double().T
    assert relative(out.detach(), exact) < 1e-6
    out.sum().backward()
    assert gate.weight.grad.dtype == torch.float32
    # A rounded gate rounds the tokens too, and is another one.
    rounded = gate.bfloat16()(x)
    assert rounded.dtype == torch.bfloat16
    assert relative(rounded.detach(), exact) > 1e-4


def test_a_hybrid_layer_has_three_and_they_are_stored_as_linear_layers_are():
    attention = tiny_model("H").layers[0].self_attention
    assert {name for name, part in attention.named_modules() if isinstance(part, Gate)} == set(GATES)
    heads, width = 2, attention.gate_proj.weight.shape[1]
    for name in GATES:
        assert attention.get_submodule(name).state_dict().keys() == {"weight"}
        assert attention.get_parameter(f"{name}.weight").shape == (heads, width)
