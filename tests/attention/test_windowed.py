"""Windowed hybrid layers, in all their forms: the windowed softmax layer they start as, streams and clips, memory."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arl2.attention.plan import kind_of
from arl2.checkpoints.conversion import convert
from arl2.errors import ConfigError
from arl2.kernels.attention import naive
from arl2.kernels.attention.mass import attention_with_mass, log_mean_mass, range_log_mean_mass
from arl2.kernels.attention.ranges import QueryRange
from arl2.kernels.delta_forms.chunked import CHANNEL_CHUNK
from arl2.kernels.delta_rule.chunked import CHUNK
from arl2.model.cost import memory_bytes, pass_flops
from arl2.model.passes import DiffusionForcing, TeacherForcing
from support import randn, relative, tiny_model

KINDS = "WKGV"
FORMS = {
    "default": {},
    "evicted": {"over": "evicted"},
    "spatial": {"rotation": "spatial"},
    "unrotated": {"rotation": "none"},
    "interpolated": {"mixing": "interpolated"},
    "weighed": {"mixing": "log-sum-exp", "normalized_read": True},
    "block": {"sees": "block", "normalized_read": True},
}
TEXT = randn(1, 5, 10)


def model_of(plan: str, form: str = "default", **changes):
    return tiny_model(plan, **{"window": 6, "state_rank": 2, "ffn_rank": 2, "state_form": FORMS[form], **changes})


def streamed(model, noisy, timestep, written, writes, *, first: int | None = None, memory=None):
    """Flows of all blocks, each predicted and then committed, and the memory after them."""
    memory = memory or model.allocate_memory(batch=1, height=4, width=6)
    flows, start = [], 0
    with torch.no_grad():
        while start < noisy.shape[2]:
            part = slice(start, start + (first if first and not start else 2))
            flows.append(model.predict(noisy[:, :, part], timestep[:, part], TEXT, memory))
            model.commit(written[:, :, part], writes[:, part], TEXT, memory)
            start = part.stop
    return torch.cat(flows, dim=2), memory


def case(frames: int):
    clean, noisy = randn(1, 3, frames, 4, 6), randn(1, 3, frames, 4, 6, seed=1)
    timestep = torch.full((1, frames), 700.0)
    return clean, noisy, timestep


@pytest.mark.parametrize(
    ("plan", "form", "first", "changes"),
    [
        *((plan, form, None, {}) for plan, form in itertools.product("WV", FORMS)),
        ("K", "default", None, {}),
        ("G", "spatial", None, {}),
        ("WSKGHV", "evicted", 1, {"sink": 1, "window": 5}),
        ("W", "evicted", 1, {"sink": 1, "window": 6, "sink_positions": "relative"}),
        ("WK", "weighed", 1, {"sink": 2, "window": 7, "sink_positions": "relative"}),
        ("W", "default", 1, {"window": None}),
    ],
)
def test_streaming_equals_the_parallel_pass(plan, form, first, changes):
    model = model_of(plan, form, **changes)
    clean, noisy, timestep = case(11 if first else 12)
    expected, _ = streamed(model, noisy, timestep, clean, torch.zeros_like(timestep), first=first)
    with torch.no_grad():
        parallel = model(noisy, timestep, TEXT, run=TeacherForcing(clean, first_block_frames=first))
    assert relative(parallel, expected) < 1e-5
    if len(plan) == 1 and form in ("default", "evicted"):
        own, _ = streamed(model, noisy, timestep, noisy, timestep, first=first)
        with torch.no_grad():
            assert relative(model(noisy, timestep, TEXT, run=DiffusionForcing(first)), own) < 1e-5


@pytest.mark.parametrize(
    ("kind", "form"),
    [*((kind, "default") for kind in KINDS), *(("W", form) for form in ("evicted", "interpolated", "weighed"))],
)
def test_a_layer_that_was_just_converted_is_the_windowed_softmax_layer(kind, form):
    teacher = tiny_model("SS", window=6, sink=1)
    student = convert(teacher, kind + "S", state_rank=2, ffn_rank=2, state_form=FORMS[form]).model
    clean, noisy, timestep = case(12)
    with torch.no_grad():
        one, other = (model(noisy, timestep, TEXT, run=TeacherForcing(clean)) for model in (teacher, student))
    # The same sums in the same order; only LoRA adapters of value zero are added.
    torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-6)
    streams = [streamed(model, noisy, timestep, clean, 0 * timestep)[0] for model in (teacher, student)]
    torch.testing.assert_close(*reversed(streams), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_own_block_alone_is_seen_the_gate_starts_open(kind):
    student = convert(tiny_model("SS"), kind + "S", state_form=FORMS["block"]).model
    assert torch.equal(student.layers[0].self_attention.openness, torch.ones(2))


@pytest.mark.parametrize(
    ("kind", "form"), [("W", "default"), ("W", "interpolated"), ("K", "weighed"), ("G", "default"), ("V", "default")]
)
def test_everything_that_is_new_gets_gradients(kind, form):
    model = model_of(kind, form)
    clean, noisy, timestep = case(6)
    model(noisy, timestep, TEXT, run=TeacherForcing(clean)).square().mean().backward()
    attention = model.layers[0].self_attention
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name
    trained = {ending for part in kind_of(kind).parts for ending in part.endings}
    assert {name for name, _ in attention.named_parameters() if not name.startswith("shared.")} <= trained


@torch.no_grad()
def test_a_state_over_evicted_blocks_knows_nothing_of_the_window():
    """What the window shows may change without a change of what is read; what it has lost may not."""
    clean, _, timestep = case(10)
    for block, is_known in ((0, True), (1, True), (2, True), (3, False), (4, False)):
        changed = clean.clone()
        changed[:, :, 2 * block : 2 * block + 2] += 1
        model = model_of("W", "evicted")
        reads = [streamed(model, x, timestep, x, 0 * timestep)[1].layers[0].read() for x in (clean, changed)]
        assert torch.equal(*reads) is not is_known
    # Six frames show two past blocks of two frames whole, so three states are kept.
    assert model_of("W", "evicted").allocate_memory(batch=1, height=4, width=6).layers[0].states.shape[1] == 3


@torch.no_grad()
@pytest.mark.parametrize("form", ["default", "evicted"])
def test_a_memory_is_saved_restored_and_forked(form):
    model = model_of("WS", form)
    clean, noisy, timestep = case(12)
    first = slice(0, 8)
    _, memory = streamed(model, noisy[:, :, first], timestep[:, first], clean[:, :, first], 0 * timestep[:, first])
    fork, restored = memory.clone(), model.allocate_memory(batch=1, height=4, width=6)
    restored.restore(memory.tensors(), memory.facts())
    assert restored.fingerprint() == memory.fingerprint()
    rest = slice(8, 12)
    given = noisy[:, :, rest], timestep[:, rest], clean[:, :, rest], 0 * timestep[:, rest]
    expected, _ = streamed(model, *given, memory=memory)
    for other in (fork, restored):
        assert torch.equal(streamed(model, *given, memory=other)[0], expected)
        assert other.fingerprint() == memory.fingerprint()
    assert memory.has_window
    assert not model_of("W", "block").allocate_memory(batch=1, height=4, width=6).has_window


@torch.no_grad()
@pytest.mark.parametrize(("kind", "form"), [*((kind, "default") for kind in KINDS), ("W", "evicted"), ("K", "spatial")])
def test_where_frames_are_counted_from_makes_no_difference(kind, form):
    model = model_of(kind, form)
    clean, noisy, timestep = case(10)
    _, memory = streamed(model, clean[:, :, :8], timestep[:, :8], clean[:, :, :8], 0 * timestep[:, :8])
    moved = memory.clone()
    moved.move_origin(5)
    here, there = (model.predict(noisy[:, :, 8:], timestep[:, 8:], TEXT, m) for m in (memory, moved))
    assert relative(there, here) < 1e-5


@pytest.mark.parametrize(
    ("plan", "form"), [*((kind, "default") for kind in KINDS), ("WS", "evicted"), ("W", "weighed"), ("G", "block")]
)
def test_bytes_and_operations_are_what_is_allocated_and_counted(plan, form):
    model, size = model_of(plan, form), 16
    memory = model.allocate_memory(batch=1, height=size, width=size)
    assert memory.nbytes == memory_bytes(model.config, batch=1, frame_tokens=64, element_size=4).at(6)
    given = randn(1, 3, 2, size, size), torch.zeros(1, 2), model.prompt_context(TEXT)
    model.commit(*given, memory)
    time_path = 2 * 2 * (16 * 24 + 24 * 24 + 6 * 24 * 24)
    tokens, heads, head = 128, 2, 12
    assert tokens % CHUNK == tokens % CHANNEL_CHUNK == 0
    # The profiler sees neither solves nor in-place products.
    unseen = {"W": tokens * heads * (CHUNK * head + 2 * head**2), "V": 2 * heads * 7 * head**3 // 3}
    unseen |= dict.fromkeys("KG", tokens * heads * CHANNEL_CHUNK * head)
    for commit, run in ((False, model.predict), (True, model.commit)):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run(*given, memory)
        counted = pass_flops(model.config, memory.geometry, past_frames=2, commit=commit)
        assert counted.total == counter.get_total_flops() - time_path + (unseen[plan[0]] if commit else 0)


def test_the_mass_of_a_window_is_that_of_its_scores():
    q, k = randn(2, 300, 2, 6, dtype=torch.float64), randn(2, 40, 2, 6, seed=1, dtype=torch.float64)
    scores = 6**-0.5 * torch.einsum("bqhd,bkhd->bqhk", q, k)
    torch.testing.assert_close(log_mean_mass(q=q, k=k), scores.exp().mean(-1).log())
    ranges = (QueryRange(0, 100, ((0, 10),)), QueryRange(100, 300, ((5, 15), (30, 40))))
    mask = naive.dense_mask(ranges, 300, 40)[:, None]
    expected = scores.masked_fill(~mask, -torch.inf).exp().sum(-1) / mask.sum(-1)
    torch.testing.assert_close(range_log_mean_mass(q=q, k=k, ranges=ranges), expected.log())


@pytest.mark.parametrize("backend", ["auto", "naive", "sdpa"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_attention_says_the_mass_it_found(backend, dtype, within):
    """One kernel gives both on a CPU; where gradients are needed, or another backend is asked for, two do."""
    q, k, v = (randn(2, 40, 3, 8, seed=i, dtype=torch.float64).to(dtype) for i in range(3))
    expected = naive.softmax_attention(q=q.double(), k=k[:, ::2].double(), v=v[:, ::2].double())
    mass = log_mean_mass(q=q.double(), k=k[:, ::2].double())
    attended, found = attention_with_mass(q=q, k=k[:, ::2], v=v[:, ::2], backend=backend)
    assert (attended.dtype, found.dtype) == (dtype, torch.promote_types(dtype, torch.float32))
    assert relative(attended, expected) < within
    # Of half precision only scores are rounded, and not in every kernel.
    assert (found - mass).abs().max() < within
    wants = q.clone().requires_grad_()
    outputs = attention_with_mass(q=wants, k=k, v=v, backend=backend)
    (gradient,) = torch.autograd.grad(outputs[1].sum(), wants)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("keys", [1, 4])
def test_a_weighed_past_counts_as_more_tokens_of_the_softmax(keys):
    """With a read ``r`` and a gate ``s`` the layer mixes as if as many keys of score ``s`` and value ``r`` were there
    as the window shows, with ``s - log n`` as if it were one."""
    q, k, v = (randn(1, 4, 2, 6, seed=i, dtype=torch.float64) for i in range(3))
    read, score = randn(1, 4, 2, 6, seed=3, dtype=torch.float64), randn(1, 4, 2, seed=4, dtype=torch.float64)
    weights = 6**-0.5 * torch.einsum("bqhd,bkhd->bqhk", q, k)
    shares = torch.cat([weights, score[..., None].expand(-1, -1, -1, keys)], dim=-1).softmax(-1)
    expected = torch.einsum("bqhk,bkhd->bqhd", shares[..., :4], v) + shares[..., 4:].sum(-1, keepdim=True) * read
    attended = naive.softmax_attention(q=q, k=k, v=v)
    attention = model_of("W", "weighed").layers[0].self_attention.double()
    attention.read_norm = None
    with torch.no_grad():
        attention.openness.fill_(1.0)
        gate = score - torch.tensor(4.0 / keys).log()
        mixed = attention.mixed(attended, read, gate, log_mean_mass(q=q, k=k))
    # The gate and the mass are weighed in float32.
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state_form": {"rotatoin": "none"}}, r"Unknown setting 'state_form.rotatoin'. Did you mean 'rotation'"),
        ({"state_form": {"over": "all"}}, r"'state_form.over' takes one of \"past\", \"evicted\"; got \"all\""),
        ({"state_form": {"over": "evicted"}, "window": None}, "without a window nothing is ever evicted"),
        ({"state_form": {"over": "evicted", "sees": "block"}}, "have no window to evict from"),
    ],
)
def test_forms_that_cannot_be(changes, said):
    with pytest.raises(ConfigError, match=said):
        tiny_model("W", **{"window": 6, **changes})


def test_models_of_other_forms_do_not_take_each_others_memory():
    signatures = {model_of("W", form).signature for form in FORMS}
    assert len(signatures) == len(FORMS)
    assert "state_form" not in tiny_model("HS").signature
