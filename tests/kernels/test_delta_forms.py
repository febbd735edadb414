"""Delta rules with gates per channel and with one write per frame: against the recurrences as they read."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from arl2.kernels.delta_forms import channel_delta_state, frame_delta_state, naive
from arl2.kernels.delta_forms.chunked import CHANNEL_CHUNK
from arl2.kernels.delta_rule import gated_delta_state
from support import relative

FORMS = {
    "channel": (channel_delta_state, naive.channel_delta_state),
    "frame": (frame_delta_state, naive.frame_delta_state),
}
FRAME = 5


def case(form: str, seed: int, tokens: int, *, decay: str = "mild", dtype: torch.dtype = torch.float64) -> dict:
    draw = torch.Generator().manual_seed(seed)
    batch, heads, key, value = 2, 2, 8, 6

    def uniform(*last: int) -> Tensor:
        return torch.rand(batch, tokens, heads, *last, generator=draw, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    rates = uniform(key)
    # Mixed: some channels all but reset at some tokens, beside tokens and channels that hardly decay.
    g = -1e-3 * rates - 500.0 * (rates > 0.9) if decay == "mixed" else -{"none": 0.0, "mild": 0.2}[decay] * rates
    arguments = {
        "k": torch.nn.functional.normalize(normal(batch, tokens, heads, key), dim=-1),
        "v": normal(batch, tokens, heads, value),
        "g": g,
        "initial_state": normal(batch, heads, key, value),
    }
    if form == "channel":
        arguments |= {"erase": uniform(key), "write": uniform(value)}
    else:
        arguments |= {"beta": 2 * uniform()}
    return {name: x.to(dtype) for name, x in arguments.items()} | ({"frame_tokens": FRAME} if form == "frame" else {})


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), frames=st.integers(1, 8), decay=st.sampled_from(["none", "mild", "mixed"]))
def test_equals_the_recurrence(form, seed, frames, decay):
    fast, plain = FORMS[form]
    arguments = case(form, seed, FRAME * frames, decay=decay)
    torch.testing.assert_close(fast(**arguments), plain(**arguments), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", ["mild", "mixed"])
def test_gradients_equal_those_of_the_recurrence(form, decay):
    def gradients(which: int) -> dict[str, Tensor]:
        arguments = case(form, 3, 4 * FRAME, decay=decay)
        wanted = {name: x.requires_grad_() for name, x in arguments.items() if isinstance(x, Tensor)}
        FORMS[form][which](**arguments).square().sum().backward()
        return {name: x.grad for name, x in wanted.items()}

    fast, plain = gradients(0), gradients(1)
    for name, expected in plain.items():
        torch.testing.assert_close(fast[name], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_any_split_at_frames_gives_the_same_state(form):
    fast, _ = FORMS[form]
    arguments = case(form, 5, 7 * FRAME)
    whole, cut = fast(**arguments), 3 * FRAME
    of_tokens = {name for name, x in arguments.items() if isinstance(x, Tensor) and name != "initial_state"}
    first = {name: x[:, :cut] if name in of_tokens else x for name, x in arguments.items()}
    rest = {name: x[:, cut:] if name in of_tokens else x for name, x in arguments.items()}
    torch.testing.assert_close(fast(**{**rest, "initial_state": fast(**first)}), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_float32_stays_near_float64(form):
    # Operands rounded first: the float64 twin sees the same numbers. A float32 rounding is 1e-7; sums of some dozens of
    # terms of one size lose a few of them.
    arguments = case(form, 7, 16 * FRAME, decay="mixed", dtype=torch.float32)
    fast, plain = FORMS[form]
    state = fast(**arguments)
    assert state.dtype == torch.float32
    assert relative(state, plain(**arguments)) < 2e-6


def test_with_one_gate_for_all_channels_it_is_the_gated_delta_rule():
    arguments = case("channel", 11, 3 * CHANNEL_CHUNK + 5)
    draw = torch.Generator().manual_seed(1)
    g = -0.1 * torch.rand(arguments["k"].shape[:3], generator=draw, dtype=torch.float64)
    beta = 2 * torch.rand(arguments["k"].shape[:3], generator=draw, dtype=torch.float64)
    k, v, start = (arguments[name] for name in ("k", "v", "initial_state"))
    ours = channel_delta_state(
        k=k,
        v=v,
        g=g[..., None].expand_as(k),
        erase=beta[..., None].expand_as(k),
        write=beta[..., None].expand_as(v),
        initial_state=start,
    )
    torch.testing.assert_close(
        ours, gated_delta_state(k=k, v=v, g=g, beta=beta, initial_state=start), rtol=1e-9, atol=1e-11
    )


def test_states_are_those_of_fla_core():
    """Its token loops for the rules of kinds H and W, K, and G (make_fla_reference.py)."""
    found = load_file(Path(__file__).with_name("fla-core.safetensors"))
    k, v, g, beta, start = (found[name] for name in ("k", "v", "g", "beta", "initial_state"))
    shared = {"k": k, "v": v, "initial_state": start}
    states = {
        "gated_delta": gated_delta_state(**shared, g=g[..., 0], beta=beta),
        "kimi_delta": channel_delta_state(
            **shared, g=g, erase=beta[..., None].expand_as(k), write=beta[..., None].expand_as(v)
        ),
        "gated_delta_2": channel_delta_state(**shared, g=g, erase=found["erase"], write=found["write"]),
    }
    for name, state in states.items():
        # Two float32 computations in other orders; seen: 2e-7.
        assert relative(state, found[name]) < 2e-6, name
    assert relative(states["gated_delta"], found["kimi_delta"]) > 0.01  # they are three rules


def test_the_order_of_a_frames_tokens_does_not_matter_to_a_joint_write():
    arguments = case("frame", 13, FRAME)
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = {name: x[:, order] if name in ("k", "v", "g", "beta") else x for name, x in arguments.items()}
    torch.testing.assert_close(frame_delta_state(**turned), frame_delta_state(**arguments), rtol=1e-10, atol=1e-12)


def test_a_frame_of_one_token_is_one_damped_step_of_the_delta_rule():
    arguments = {**case("frame", 17, 1), "frame_tokens": 1}
    k, beta = arguments["k"], arguments["beta"]
    # (I + beta k k^T)^-1 shortens the step of one key by 1 + beta |k|^2.
    step = beta / (1 + beta * k.square().sum(-1))
    expected = channel_delta_state(
        **{name: arguments[name] for name in ("k", "v", "g", "initial_state")},
        erase=step[..., None].expand_as(k),
        write=step[..., None].expand_as(arguments["v"]),
    )
    torch.testing.assert_close(frame_delta_state(**arguments), expected, rtol=1e-10, atol=1e-12)


def test_strong_joint_writes_recall_the_frame_and_stay_finite():
    arguments = case("frame", 19, FRAME)
    arguments["beta"] = torch.full_like(arguments["beta"], 1e6)
    state = frame_delta_state(**arguments)
    recalled = torch.einsum("bthk,bhkv->bthv", arguments["k"], state)
    # Five keys in eight dimensions: all can be met at once, but for what the past still weighs against 1e6.
    assert relative(recalled, arguments["v"]) < 1e-3
