"""Products of layers in half precision on a CPU: in float32 where that is faster, the same numbers up to rounding."""

import pytest
import torch
from torch import nn

from arl2.attention.lora import LoRALinear, as_function
from arl2.kernels.attention import softmax_attention
from arl2.kernels.linear import FastProducts, Linear, linear
from arl2.kernels.timings import Timings, use_timings
from arl2.model.layer import FeedForward
from support import randn, relative

HALF = torch.bfloat16


class Favours:
    """A clock by which what runs as number ``index`` of the candidates takes no time at all, the others a second."""

    def __init__(self, index: int) -> None:
        self.index, self.reads, self.now = index, 0, 0.0

    def __call__(self) -> float:
        # Read before and after each of three runs of a candidate.
        candidate, after = self.reads // 6, self.reads % 2
        if after and candidate != self.index:
            self.now += 1.0
        self.reads += 1
        return self.now


def choosing(index: int):
    """Within the ``with``, the first (0) or second (1) candidate is the fastest."""
    return use_timings(Timings(None, Favours(index)))


@pytest.mark.parametrize("way", [0, 1])
def test_a_product_in_half_precision_is_as_exact_either_way(way):
    x, weight, bias = (randn(*shape, seed=i).to(HALF) for i, shape in enumerate([(2, 5, 96), (40, 96), (40,)]))
    truth = nn.functional.linear(x.double(), weight.double(), bias.double())
    with torch.no_grad(), choosing(way):
        ours = linear(x, weight, bias)
    assert ours.dtype == HALF
    # One rounding of the result; a sum kept in bfloat16 would be worse by far.
    assert relative(ours.double(), truth) < 2**-8


def test_float32_rounds_a_product_once():
    x, weight = randn(64, 96).to(HALF), randn(40, 96, seed=1).to(HALF)
    with torch.no_grad(), choosing(1):
        ours = linear(x, weight)
    assert torch.equal(ours, (x.float() @ weight.float().T).to(HALF))


@torch.no_grad()
def test_models_of_other_libraries_multiply_so_too():
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(96, 40), nn.Linear(40, 7, bias=False)).to(HALF)
    x = randn(64, 96).to(HALF)
    with choosing(1), FastProducts():
        ours = other(x)
    first = (x.float() @ other[0].weight.float().T + other[0].bias.float()).to(HALF)
    # Equal but for sums with a bias, which a library may begin with the bias or end with it.
    assert relative(ours, (first.float() @ other[1].weight.float().T).to(HALF)) < 2**-9


def test_other_dtypes_and_gradients_are_left_alone():
    layer = Linear(6, 4)
    plain = nn.Linear(6, 4)
    plain.load_state_dict(layer.state_dict())
    x = randn(3, 6, dtype=torch.float32)
    with use_timings(Timings(None, lambda: pytest.fail("nothing is to be timed"))):
        assert torch.equal(layer(x), plain(x))
        layer.to(HALF)(x.to(HALF)).sum().backward()  # gradients are recorded
    assert layer.weight.grad.dtype == HALF


def test_attention_in_half_precision_on_a_cpu():
    q, k, v = (randn(1, tokens, 3, 16, seed=i).to(HALF) for i, tokens in enumerate((7, 11, 11)))
    truth = softmax_attention(q=q, k=k, v=v, backend="naive").double()
    with torch.no_grad():
        found = []
        for way in (0, 1):
            with choosing(way):
                found.append(softmax_attention(q=q, k=k, v=v))
        in_float32 = softmax_attention(q=q, k=k, v=v, backend="float32")
        own = softmax_attention(q=q, k=k, v=v, backend="sdpa")
    assert torch.equal(found[0], own)
    assert torch.equal(found[1], in_float32)
    for ours in found:
        assert ours.dtype == HALF
        assert relative(ours.double(), truth) < 2**-7


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_a_feed_forward_in_pieces_is_the_one_that_gradients_go_through(monkeypatch, rank, dtype):
    monkeypatch.setattr("arl2.model.layer._PIECE_BYTES", 3 * 24 * 4)  # three tokens in float32
    torch.manual_seed(0)
    layer = FeedForward(8, 24, rank, 2.0 * rank)
    if rank:
        for half in (layer.up, layer.down):
            nn.init.normal_(half.change.B)
    layer = layer.to(dtype)
    x = randn(2, 5, 8).to(dtype)
    with torch.no_grad(), choosing(1):
        ours = layer(x)
    recorded = layer(x).detach()
    truth = layer.double()(x.double()).detach()
    assert ours.dtype == dtype
    assert ours.shape == x.shape
    # As exact as the form that rounds in between: sums of 24 numbers in another order, or fewer roundings.
    assert relative(ours.double(), truth) <= max(2e-6, 1.5 * relative(recorded.double(), truth))


def test_a_layer_that_something_hooks_into_is_called():
    layer, x = LoRALinear(4, 6, 2, 4.0), randn(3, 4, dtype=torch.float32)
    assert as_function(layer, x, torch.float32) is not None
    seen = []
    handle = layer.linear.register_forward_hook(lambda *_: seen.append(1))
    assert as_function(layer, x, torch.float32) is None
    feed_forward = FeedForward(4, 6, 2, 4.0)
    feed_forward.up = layer
    with torch.no_grad():
        feed_forward(randn(1, 3, 4, dtype=torch.float32))
    assert seen == [1]
    handle.remove()
    assert as_function(layer, x, torch.float32) is not None
    assert as_function(nn.Linear(4, 6), x, torch.float32) is None  # someone else's layer
