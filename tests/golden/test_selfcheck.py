"""The published code's numbers: every tensor of every golden model, and that mistakes would show."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

import arl2.attention.hybrid
import arl2.attention.state_branch
from arl2.attention.hybrid import HybridAttention
from arl2.attention.memory import RecurrentState
from arl2.attention.state_branch import StateBranch
from arl2.diffusion import samplers
from arl2.errors import CheckpointError, ConfigError, NonFiniteError
from arl2.evaluation.goldens import packaged_goldens, read_goldens, relative_error
from arl2.evaluation.selfcheck import Check, selfcheck
from arl2.kernels.delta_rule import gated_delta_state
from arl2.kernels.norm import l2_norm
from arl2.kernels.rope import Rotation
from arl2.rollout.denoise import Rollout
from support import SHARED_GOLDENS, needs_shared_goldens, packaged_cases

# All of the packaged set but the one model that takes fifty denoising steps a block.
SHORT = ("hybrid_lora", "softmax_window", "image_two_steps")
CONTENT = {"chunkwise": 85, "framewise": 91, "image_and_unipc": 6}  # tensors compared


def failures(folder, **options) -> list[str]:
    return [check.name for check in selfcheck(folder, **options) if not check.passed]


def test_the_packaged_set_saved_and_loaded():
    """As it is, ``arl2 selfcheck`` runs it: tests/cli/test_cli.py."""
    checks = list(selfcheck(packaged_goldens(), round_trip=True))
    assert len(checks) == 42
    assert [check.name for check in checks if not check.passed] == []


def test_the_packaged_set_is_small():
    assert sum(file.stat().st_size for file in packaged_goldens().iterdir()) <= 2_000_000


@needs_shared_goldens
@pytest.mark.parametrize("room", CONTENT)
def test_all_models_of_every_folder(room):
    checks = list(selfcheck(SHARED_GOLDENS / room))
    assert len(checks) == CONTENT[room]
    assert [check.name for check in checks if not check.passed] == []
    assert {check.limit for check in checks} == {1e-6, 2e-5}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_stay_within_their_limits(dtype, tmp_path):
    assert failures(packaged_cases(tmp_path / "goldens", *SHORT), dtype=dtype) == []


def test_the_naive_kernel_gives_the_same_numbers(tmp_path):
    assert failures(packaged_cases(tmp_path / "goldens", *SHORT), backend="naive") == []


def test_a_dtype_without_limits_is_refused():
    with pytest.raises(ConfigError, match=r"no limits for torch\.int8"):
        list(selfcheck(packaged_goldens(), dtype=torch.int8))


# Mistakes that a port makes easily. Each must push some golden tensor over its limit.


def not_carried(monkeypatch):
    """The state forgets the previous block."""
    update = gated_delta_state

    def forgetful(*, initial_state, **writes):
        return update(**writes, initial_state=torch.zeros_like(initial_state))

    monkeypatch.setattr(arl2.attention.state_branch, "gated_delta_state", forgetful)


def noisy_queries_unrotated(monkeypatch):
    """The published training path: the noisy half reads the state with queries that were not turned."""
    read_all = HybridAttention._read_all_blocks
    still = Rotation(torch.zeros(1, 1))  # turns nothing

    def unrotated(self, x, raw, rotation, layout):
        queries = self.state.queries

        def half_turned(x, raw, shared, rotation):
            turned = queries(x, raw, shared, rotation)
            plain = queries(x, raw, shared, still)
            return torch.cat([turned[:, : layout.clip_tokens], plain[:, layout.clip_tokens :]], dim=1)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self.state, "queries", half_turned)
            return read_all(self, x, raw, rotation, layout)

    monkeypatch.setattr(HybridAttention, "_read_all_blocks", unrotated)


def decay_after_the_write(monkeypatch):
    """S <- exp(g) (S + write) instead of exp(g) S + write."""

    def late_decay(*, k, v, g, beta, initial_state):
        state = initial_state
        for t in range(k.shape[1]):
            error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
            state = state + torch.einsum("bhk,bhv->bhkv", beta[:, t, :, None] * k[:, t], error)
            state = state * g[:, t].exp()[..., None, None]
        return state

    monkeypatch.setattr(arl2.attention.state_branch, "gated_delta_state", late_decay)


def low_rank_after_the_norm(monkeypatch):
    """The low-rank change is added to the normed query instead of to the projection."""

    def late_change(self, x, raw, shared, rotation):
        normed = shared.norm_q(raw.q)
        if "q" in self.changes:
            normed = normed + self.changes["q"](x)
        return l2_norm(rotation(torch.einsum("hoi,bthi->btho", self.phi_q, shared.split(normed))))

    monkeypatch.setattr(StateBranch, "queries", late_change)
    monkeypatch.setattr("arl2.attention.folded._WIDEST", 0)  # a folded product has no place for this


def beta_not_doubled(monkeypatch):
    """beta in (0, 1): no negative eigenvalues."""
    writes = StateBranch.writes

    def halved(self, *args):
        k, v, g, beta = writes(self, *args)
        return k, v, g, beta / 2

    monkeypatch.setattr(StateBranch, "writes", halved)


def read_after_the_write(monkeypatch):
    """The clean pass attends to the state it has just written."""
    stream = HybridAttention.stream

    def eager(self, x, rotation, memory, access):
        out = stream(self, x, rotation, memory, access)
        return stream(self, x, rotation, memory, type(access).READ) if access.name == "COMMIT" else out

    monkeypatch.setattr(HybridAttention, "stream", eager)


def exact_gelu(monkeypatch):
    """The erf form of GELU instead of the tanh form."""
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate="none": gelu(x))


def state_in_half_precision(monkeypatch):
    """The state kept in bfloat16."""
    write = RecurrentState.write
    monkeypatch.setattr(RecurrentState, "write", lambda self, s: write(self, s.bfloat16().float()))


def first_list_for_block_0_alone(monkeypatch):
    """The step list of the first chunk goes to the first block of the video, given or not."""
    monkeypatch.setattr(Rollout, "first_generated", property(lambda _: 0, lambda *_: None), raising=False)


def known_frames_as_generated(monkeypatch):
    """Conditioning frames committed at another timestep than 0."""
    commit = Rollout.commit

    def noisy(self, latents, *, known):
        self.settings = replace(self.settings, context_noise=100.0)
        return commit(self, latents, known=False)

    monkeypatch.setattr(Rollout, "commit", noisy)


def grid_of_diffusers(monkeypatch):
    """UniPC on the grid of ``use_flow_sigmas``."""
    unipc = samplers._unipc
    monkeypatch.setattr(
        samplers, "_unipc", lambda steps, shift, train, _: unipc(steps, shift, train, "unipc-diffusers")
    )


# Each mistake and a tensor that it must push over the limit.
MISTAKES = {
    not_carried: "hybrid_lora/state_after_block.1.layer.0",
    noisy_queries_unrotated: "hybrid_lora/teacher_forcing.flow_pred",
    decay_after_the_write: "hybrid_lora/state_after_block.0.layer.0",
    low_rank_after_the_norm: "hybrid_lora/flow_pred_second_block_first_pass",
    beta_not_doubled: "hybrid_lora/state_after_block.0.layer.0",
    read_after_the_write: "hybrid_lora/state_after_block.1.layer.2",
    exact_gelu: "softmax_window/latents",
    state_in_half_precision: "hybrid_lora/state_after_block.0.layer.0",
    first_list_for_block_0_alone: "image_two_steps/latents",
    known_frames_as_generated: "image_two_steps/state.0",
    grid_of_diffusers: "unipc_50/latents",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_caught(mistake, monkeypatch, tmp_path):
    model = MISTAKES[mistake].partition("/")[0]
    mistake(monkeypatch)
    assert MISTAKES[mistake] in failures(packaged_cases(tmp_path / "goldens", model))


def test_unrotated_noisy_queries_show_in_teacher_forcing_alone(monkeypatch, tmp_path):
    noisy_queries_unrotated(monkeypatch)
    assert all("teacher_forcing" in name for name in failures(packaged_cases(tmp_path / "goldens", *SHORT)))


@needs_shared_goldens
def test_what_is_made_again_from_seeds_is_what_the_published_code_had():
    """To the last bits, which the normal numbers of another processor may lack."""
    packaged = {golden.name: golden for golden in read_goldens(packaged_goldens()).sampled}
    shared = {golden.name: golden for golden in read_goldens(SHARED_GOLDENS / "image_and_unipc").sampled}
    assert set(packaged) == set(shared) == {"image_two_steps", "unipc_50"}
    for name, golden in shared.items():
        weights = torch.load(golden.checkpoint, weights_only=True)["generator"]
        for ours, theirs in ((packaged[name].weights, weights), (packaged[name].tensors, golden.tensors)):
            assert set(ours) == set(theirs)
            assert all(relative_error(ours[part], theirs[part]) < 1e-6 for part in theirs)


def test_a_processor_with_other_last_bits_is_said(tmp_path, caplog):
    folder = packaged_cases(tmp_path / "goldens", "unipc_50")
    change_json(folder / "seeds_unipc_50.json", sha256="0")
    assert failures(folder) == []
    assert "seeds_unipc_50.json: random numbers of this processor differ" in caplog.text


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SOME_NOISE = {"seed": 11, "tensors": [["noise", [2, 5, 16, 6, 8], "normal", 1, 0]]}


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config", {"unipc_50": {"solver": "unipc"}}, "unipc_50 lacks 'num_heads'; the golden folder is not whole"),
        ("seeds_unipc_50", {"weights": [{"seed": 4}]}, "is no recipe of random tensors"),
        ("seeds_unipc_50", {"weights": 3}, "is no recipe of random tensors"),
        ("seeds_unipc_50", {"inputs": [{"seed": 1, "tensors": [["x", [2], "cauchy", 1, 0]]}]}, "unknown law cauchy"),
        ("seeds_unipc_50", {"inputs": []}, "lacks noise; the golden file is not whole"),
        ("seeds_image_two_steps", {"inputs": [SOME_NOISE]}, "has fresh noise for 0 steps instead of 7"),
    ],
)
def test_a_sampled_case_that_is_not_whole(tmp_path, file, changes, said):
    folder = packaged_cases(tmp_path / "goldens")
    change_json(folder / f"{file}.json", **changes)
    with pytest.raises(CheckpointError, match=said):
        list(selfcheck(folder))


def test_a_sampled_case_without_weights(tmp_path):
    folder = packaged_cases(tmp_path / "goldens")
    (folder / "seeds_image_two_steps.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no checkpoint_image_two_steps\.pt beside it"):
        read_goldens(folder)


def test_a_changed_number_is_found(tmp_path):
    folder = packaged_cases(tmp_path / "goldens", *SHORT)
    path = folder / "rollout_hybrid_lora.safetensors"
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["latents"][0, 3] += 1e-3
    save_file(tensors, path, metadata)
    assert failures(folder) == ["hybrid_lora/latents"]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_nan_never_passes(broken):
    ours, golden = torch.ones(4), torch.ones(4)
    ours[1] = broken
    assert relative_error(ours, golden) == float("inf")
    assert not Check("x", relative_error(ours, golden), 1e9).passed


def test_weights_that_are_not_finite_stop_the_check(monkeypatch):
    monkeypatch.setattr(arl2.attention.hybrid, "read_state", lambda q, _: torch.full_like(q, float("nan")))
    with pytest.raises(NonFiniteError, match="not finite"):
        list(selfcheck(packaged_goldens()))


def without(path, *names):
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({name: t for name, t in tensors.items() if name not in names}, path, metadata)


@pytest.mark.parametrize(
    ("file", "name", "said"),
    [
        ("rollout_hybrid_lora", "noise", "lacks noise"),
        ("rollout_hybrid_lora", "state_after_block.2.layer.0", r"lacks state_after_block\.2\.layer\.0"),
        ("flow_match_schedule", "sigmas", "lacks sigmas"),
        ("gated_delta_rule", "1.beta", r"case 1 of .* lacks beta"),
    ],
)
def test_a_golden_tensor_that_is_missing_is_named(tmp_path, file, name, said):
    folder = packaged_cases(tmp_path / "goldens")
    without(folder / f"{file}.safetensors", name)
    with pytest.raises(CheckpointError, match=said):
        list(selfcheck(folder))


def test_folders_that_are_not_goldens(tmp_path):
    with pytest.raises(CheckpointError, match="no golden folder"):
        list(selfcheck(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="not a golden folder"):
        list(selfcheck(tmp_path))
    folder = packaged_cases(tmp_path / "goldens")
    (folder / "checkpoint_hybrid_lora.pt").unlink()
    with pytest.raises(CheckpointError, match=r"has no checkpoint_hybrid_lora\.pt beside it"):
        list(selfcheck(folder))
    folder = packaged_cases(tmp_path / "again")
    (folder / "gated_delta_rule.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"is not a whole \.safetensors file"):
        list(selfcheck(folder))
