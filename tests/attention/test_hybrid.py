"""The hybrid layer by itself: the equations that need no rollout."""

import pytest
import torch

from arl2.attention.cost import HeadSize
from arl2.attention.hybrid import HybridSpec
from arl2.attention.kind import Access
from arl2.attention.memory import MemoryGeometry, RecurrentState
from arl2.attention.plan import parse_plan, plan_of
from arl2.attention.softmax import SoftmaxSpec
from arl2.errors import ConfigError
from arl2.kernels.rope import Rotation, rope_angles
from support import randn, relative, tiny_model

WIDTH, HEADS, ROWS, COLUMNS, FRAMES = 24, 2, 2, 3, 2
TOKENS = FRAMES * ROWS * COLUMNS
SIZE = HeadSize(HEADS, WIDTH // HEADS)
GEOMETRY = MemoryGeometry(1, ROWS, COLUMNS, FRAMES)


def hybrid(rank: int = 2):
    return tiny_model("H", state_rank=rank).layers[0].self_attention


def rotation_at(frame: int) -> Rotation:
    return Rotation(rope_angles(range(frame, frame + FRAMES), ROWS, COLUMNS, WIDTH // HEADS))


def state_with(seed: int) -> RecurrentState:
    memory = RecurrentState(GEOMETRY, HEADS, WIDTH // HEADS, "cpu")
    memory.write(randn(1, HEADS, WIDTH // HEADS, WIDTH // HEADS, seed=seed))
    memory.advance(FRAMES)
    return memory


@torch.no_grad()
def test_with_an_empty_state_it_is_the_softmax_layer():
    attention = hybrid()
    softmax = SoftmaxSpec().build(SIZE, eps=1e-6)
    softmax.shared.load_state_dict(attention.shared.state_dict())
    x = randn(1, TOKENS, WIDTH)
    empty = attention.allocate_memory(
        GEOMETRY, window=None, sink=0, sink_positions="absolute", dtype=x.dtype, device="cpu"
    )
    cache = softmax.allocate_memory(
        GEOMETRY, window=None, sink=0, sink_positions="absolute", dtype=x.dtype, device="cpu"
    )
    torch.testing.assert_close(
        attention.stream(x, rotation_at(0), empty, Access.READ), softmax.stream(x, rotation_at(0), cache, Access.READ)
    )


@torch.no_grad()
def test_a_closed_gate_leaves_attention_inside_the_block_alone(monkeypatch):
    attention, x = hybrid(), randn(1, TOKENS, WIDTH)
    empty = attention.allocate_memory(
        GEOMETRY, window=None, sink=0, sink_positions="absolute", dtype=x.dtype, device="cpu"
    )
    intra = attention.stream(x, rotation_at(0), empty, Access.READ)
    full = state_with(1)
    assert relative(attention.stream(x, rotation_at(0), full, Access.READ), intra) > 1e-2
    monkeypatch.setattr(attention.gate_proj, "forward", lambda x: x.new_full((*x.shape[:2], HEADS), -torch.inf))
    assert torch.equal(attention.stream(x, rotation_at(0), full, Access.READ), intra)


@torch.no_grad()
def test_permuting_tokens_with_their_positions_permutes_the_output():
    attention, x, memory = hybrid(), randn(1, TOKENS, WIDTH), state_with(1)
    angles = rope_angles(range(4, 4 + FRAMES), ROWS, COLUMNS, WIDTH // HEADS)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    straight = attention.stream(x, Rotation(angles), memory, Access.READ)
    permuted = attention.stream(x[:, order], Rotation(angles[order]), memory, Access.READ)
    torch.testing.assert_close(permuted, straight[:, order])
    # Only what is written depends on the order.
    one, other = memory.clone(), memory.clone()
    attention.commit(x, Rotation(angles), one)
    attention.commit(x[:, order], Rotation(angles[order]), other)
    assert relative(other.state, one.state) > 1e-3


@torch.no_grad()
def test_the_clean_pass_attends_before_it_writes():
    attention, x, memory = hybrid(), randn(1, TOKENS, WIDTH), state_with(1)
    read = attention.stream(x, rotation_at(0), memory, Access.READ)
    twin = memory.clone()
    committed = attention.stream(x, rotation_at(0), memory, Access.COMMIT)
    assert torch.equal(read, committed)
    attention.commit(x, rotation_at(0), twin)
    assert torch.equal(twin.state, memory.state)


@torch.no_grad()
def test_a_conversion_starts_with_identity_features_slow_decay_and_no_change():
    attention = HybridSpec(4, 8.0).build(SIZE, eps=1e-6)
    branch = attention.state
    eye = torch.eye(WIDTH // HEADS).expand(HEADS, -1, -1)
    assert all(torch.equal(phi, eye) for phi in (branch.phi_q, branch.phi_k, branch.phi_v))
    dt = torch.nn.functional.softplus(branch.dt_bias)
    assert bool(((dt >= 0.999e-3) & (dt <= 0.1001)).all())
    assert bool((branch.A_log.exp() <= 16).all())
    x = randn(1, TOKENS, WIDTH)
    raw = attention.shared.project(x)
    plain = HybridSpec().build(SIZE, eps=1e-6)
    plain.load_state_dict(attention.state_dict(), strict=False)
    assert torch.equal(
        branch.queries(x, raw, attention.shared, rotation_at(0)),
        plain.state.queries(x, raw, plain.shared, rotation_at(0)),
    )


def test_the_low_rank_change_reaches_the_state_branch_only():
    attention, x = hybrid(), randn(1, TOKENS, WIDTH)
    empty = attention.allocate_memory(
        GEOMETRY, window=None, sink=0, sink_positions="absolute", dtype=x.dtype, device="cpu"
    )
    with torch.no_grad():
        before = attention.stream(x, rotation_at(0), empty, Access.READ)
        for change in attention.state.changes.values():
            change.B.mul_(3)
        assert torch.equal(attention.stream(x, rotation_at(0), empty, Access.READ), before)
        memory = state_with(1)
        one = attention.stream(x, rotation_at(0), memory, Access.READ)
        attention.state.changes["q"].B.mul_(3)
        assert relative(attention.stream(x, rotation_at(0), memory, Access.READ), one) > 1e-3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: parse_plan("HXS", 3), "unknown letters X"),
        (lambda: parse_plan("HS", 3), "names 2 layers but the model has 3"),
        (lambda: plan_of([0, 3], 3), "different indices from 0 to 2"),
        (lambda: plan_of([1, 1], 3), "different indices"),
        (lambda: SoftmaxSpec(window=2, sink=2), "more frames than its sink"),
    ],
)
def test_plans_that_cannot_be(call, said):
    with pytest.raises(ConfigError, match=said):
        call()


def test_a_plan_from_layer_numbers():
    assert plan_of([0, 1, 3], 4) == "HHSH"
