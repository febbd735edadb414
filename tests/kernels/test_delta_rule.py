"""The gated delta rule: every backend against the recurrence as written, outputs, states and gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arl2.errors import ConfigError
from arl2.kernels import backends as choices
from arl2.kernels.backends import use_backends
from arl2.kernels.delta_rule import BACKENDS, gated_delta_rule, gated_delta_state
from arl2.kernels.delta_rule.chunked import CHUNK
from support import relative

# Kernels for GPUs have tests of their own, in tests/gpu.
FAST = [backend for backend in BACKENDS if backend not in ("auto", "naive", "triton", "fla")]
DECAYS = ("none", "mild", "strong", "mixed")


def case(
    seed: int,
    tokens: int,
    *,
    batch: int = 1,
    heads: int = 2,
    key: int = 8,
    value: int = 6,
    decay: str = "mild",
    beta: float | None = None,
    start: bool = True,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor | None]:
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    uniform = torch.rand(batch, tokens, heads, generator=draw, dtype=torch.float64)
    scales = {"none": 0.0, "mild": 0.1, "strong": 60.0}
    # Mixed: an occasional near-total reset among tokens that hardly decay, the case that large sums spoil.
    g = -1e-3 * uniform - 500.0 * (uniform > 0.9) if decay == "mixed" else -scales[decay] * uniform
    strength = 2 * torch.rand(batch, tokens, heads, generator=draw, dtype=torch.float64)
    given_case = {
        "q": randn(batch, tokens, heads, key),
        "k": torch.nn.functional.normalize(randn(batch, tokens, heads, key), dim=-1),
        "v": randn(batch, tokens, heads, value),
        "g": g,
        "beta": strength if beta is None else torch.full_like(strength, beta),
        "initial_state": randn(batch, heads, key, value) if start else None,
    }
    return {name: None if x is None else x.to(dtype) for name, x in given_case.items()}


def without_queries(arguments: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: x for name, x in arguments.items() if name != "q"}


def plain_float32(arguments: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
    """The recurrence written plainly in float32: the error that float32 itself makes."""
    q, k, v, g, beta = (arguments[name].float() for name in ("q", "k", "v", "g", "beta"))
    state = torch.zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3])
    if arguments["initial_state"] is not None:
        state = arguments["initial_state"].float()
    outputs = []
    for t in range(k.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", beta[:, t, :, None] * k[:, t], error)
        outputs.append(k.shape[-1] ** -0.5 * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("backend", FAST)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    tokens=st.one_of(st.integers(1, 20), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 7])),
    heads=st.integers(1, 3),
    key=st.integers(1, 20),
    value=st.integers(1, 20),
    decay=st.sampled_from(DECAYS),
    start=st.booleans(),
)
def test_equals_the_recurrence(backend, seed, tokens, heads, key, value, decay, start):
    arguments = case(seed, tokens, heads=heads, key=key, value=value, decay=decay, start=start)
    o_true, state_true = gated_delta_rule(**arguments, backend="naive")
    o, state = gated_delta_rule(**arguments, backend=backend)
    alone = gated_delta_state(**without_queries(arguments), backend=backend)
    torch.testing.assert_close(o, o_true, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(state, state_true, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(alone, state_true, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("decay", DECAYS)
def test_float32_error_is_at_most_twice_that_of_plain_float32(backend, decay):
    # Operands rounded first: the float64 twin sees the same numbers.
    arguments = case(3, 300, key=32, value=32, decay=decay, dtype=torch.float32)
    o_true, state_true = gated_delta_rule(**arguments, backend="naive")
    o_plain, state_plain = plain_float32(arguments)
    o, state = gated_delta_rule(**arguments, backend=backend)
    # 1e-7 is a float32 rounding: below it a ratio of errors says nothing.
    assert relative(o, o_true) <= 2 * relative(o_plain, o_true) + 1e-7
    assert relative(state, state_true) <= 2 * relative(state_plain, state_true) + 1e-7


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", [5, CHUNK, 2 * CHUNK + 3])
def test_gradients_equal_those_of_the_recurrence(backend, decay, tokens):
    def gradients(chosen: str) -> dict[str, Tensor]:
        arguments = {n: x.requires_grad_() for n, x in case(11, tokens, decay=decay).items()}
        o, state = gated_delta_rule(**arguments, backend=chosen)
        weights = torch.linspace(-1, 1, o.numel(), dtype=torch.float64).view_as(o)
        ((o * weights).sum() + (state**2).sum()).backward()
        return {name: x.grad for name, x in arguments.items()}

    expected, found = gradients("naive"), gradients(backend)
    for name in expected:
        assert torch.isfinite(found[name]).all(), name
        torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("backend", FAST)
def test_float32_gradients_are_at_most_three_times_off_plain_float32(backend):
    def gradients(run, dtype) -> dict[str, Tensor]:
        arguments = {n: x.float().to(dtype).requires_grad_() for n, x in case(5, 150, key=16, value=16).items()}
        o, state = run(arguments)
        (o.sum() + (state**2).sum()).backward()
        return {name: x.grad for name, x in arguments.items()}

    exact = gradients(lambda a: gated_delta_rule(**a, backend="naive"), torch.float64)
    plain = gradients(plain_float32, torch.float32)
    ours = gradients(lambda a: gated_delta_rule(**a, backend=backend), torch.float32)
    for name in exact:
        assert relative(ours[name], exact[name]) <= 3 * relative(plain[name], exact[name]) + 2e-7, name


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 150), max_size=4), decay=st.sampled_from(DECAYS))
def test_any_split_gives_the_same_state(seed, cuts, decay):
    arguments = without_queries(case(seed, 150, decay=decay))
    whole = gated_delta_state(**arguments)
    state = arguments.pop("initial_state")
    bounds = [0, *sorted(cuts), 150]
    for start, stop in itertools.pairwise(bounds):
        part = {name: x[:, start:stop] for name, x in arguments.items()}
        state = gated_delta_state(**part, initial_state=state)
    torch.testing.assert_close(state, whole, rtol=1e-10, atol=1e-12)


def test_a_reset_forgets_everything_and_what_follows_is_remembered_exactly():
    arguments = case(1, 200, decay="none")
    arguments["g"][:, 100] = -1e4
    state = gated_delta_state(**without_queries(arguments))
    after = {n: x[:, 100:] for n, x in without_queries(arguments).items() if n != "initial_state"}
    after["g"] = torch.zeros_like(after["g"])
    torch.testing.assert_close(state, gated_delta_state(**after), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beta", [1e-6, 2 - 1e-6])
def test_extreme_write_strengths_stay_bounded(beta):
    arguments = without_queries(case(2, 1000, decay="none", beta=beta, start=True))
    state = gated_delta_state(**arguments)
    torch.testing.assert_close(state, gated_delta_state(**arguments, backend="naive"), rtol=1e-8, atol=1e-10)
    assert torch.isfinite(state).all()


def test_one_write_of_strength_one_stores_the_value_at_the_key():
    key = torch.nn.functional.normalize(torch.randn(1, 1, 1, 4, dtype=torch.float64), dim=-1)
    value = torch.randn(1, 1, 1, 3, dtype=torch.float64)
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    state = gated_delta_state(k=key, v=value, g=zero, beta=one)
    torch.testing.assert_close(torch.einsum("bhkv,bthk->bthv", state, key), value)


def test_no_tokens_leave_the_state_as_it_is():
    arguments = case(0, 0)
    o, state = gated_delta_rule(**arguments)
    assert o.shape == (1, 0, 2, 6)
    assert torch.equal(state, arguments["initial_state"])


def test_half_precision_inputs_keep_a_float32_state_near_the_truth_for_1000_blocks():
    truth = state = None
    worst = 0.0
    for block in range(1000):
        arguments = without_queries(case(block, 12, start=False, dtype=torch.float32))
        rounded = {n: x.bfloat16() if n in ("k", "v") else x for n, x in arguments.items() if x is not None}
        state = gated_delta_state(**rounded, initial_state=state)
        exact = {n: arguments[n].double() for n in rounded}
        truth = gated_delta_state(**exact, initial_state=truth)
        worst = max(worst, relative(state, truth))
        assert state.dtype == torch.float32
    assert worst < 1e-2


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", [1, 5, CHUNK, 5 * CHUNK + 3])
def test_gradients_of_the_state_alone_equal_those_of_the_recurrence(backend, decay, tokens):
    def gradients(chosen: str) -> list[Tensor]:
        arguments = {n: x.requires_grad_() for n, x in without_queries(case(12, tokens, decay=decay)).items()}
        state = gated_delta_state(**arguments, backend=chosen)
        (state * torch.linspace(-1, 1, state.numel(), dtype=torch.float64).view_as(state)).sum().backward()
        return [x.grad for x in arguments.values()]

    for found, expected in zip(gradients(backend), gradients("naive"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", ["triton", "fla"])
def test_a_kernel_for_gpus_is_refused_elsewhere_with_the_reason(backend):
    with pytest.raises(
        ConfigError, match=rf"Backend '{backend}' of the gated delta rule: .*; choose another, or 'auto'"
    ):
        gated_delta_state(**without_queries(case(0, 3)), backend=backend)


def test_unknown_backend_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'fastest'.*naive, chunked"):
        gated_delta_state(**without_queries(case(0, 3)), backend="fastest")


def test_a_backend_can_be_chosen_around_a_call():
    arguments = without_queries(case(0, 70, dtype=torch.float32))
    with use_backends(delta_rule="naive"):
        assert gated_delta_state(**arguments).dtype == torch.float64  # the twin computes in float64
        assert gated_delta_state(**arguments, backend="chunked").dtype == torch.float32
    assert gated_delta_state(**arguments).dtype == torch.float32
    with pytest.raises(ConfigError, match="'slow' of gated delta rule is not known"), use_backends(delta_rule="slow"):
        pass


def test_the_choice_is_logged_once(caplog):
    choices._announced.cache_clear()
    with caplog.at_level("INFO", logger="arl2.kernels"):
        for _ in range(3):
            gated_delta_state(**without_queries(case(0, 3)))
    assert [record.message for record in caplog.records] == ["gated delta rule: backend chunked (the fastest on cpu)"]
