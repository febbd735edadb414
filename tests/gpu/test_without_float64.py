"""A device without float64 (Apple's mps): nothing of float64 is put on it, and the numbers are those of the CPU."""

import numpy as np
import pytest
import torch

from arl2.attention.memory import RecurrentState
from arl2.diffusion.flow import add_noise, velocity_to_clean
from arl2.diffusion.schedule import NoiseSchedule
from arl2.float64 import float64_device, has_float64, widest_dtype, without_float64
from arl2.kernels.delta_rule import blockwise, chunked, naive
from arl2.kernels.delta_rule.decay import cumulative, difference
from arl2.kernels.rope import Rotation, turn_frames
from arl2.model.embeddings import timestep_sinusoids
from gpu.fake_mps import OnMps, fake_mps, needs_fake_mps
from pipeline.stand_in import stand_in_pipeline
from rollout.streams import GUIDED, OTHER, PROMPT, SMALL, take
from support import randn, relative


def on_cpu(x: torch.Tensor) -> torch.Tensor:
    return x.held if isinstance(x, OnMps) else x


@needs_fake_mps
def test_the_fake_device_refuses_what_a_mac_refuses():
    with fake_mps():
        x = torch.ones(3, device="mps")
        assert x.device.type == "mps"
        assert not has_float64(x.device)
        assert (float64_device("mps").type, widest_dtype("mps")) == ("cpu", torch.float32)
        for refused in (lambda: x.double(), lambda: torch.zeros(2, device="mps", dtype=torch.float64)):
            with pytest.raises(TypeError, match="float64"):
                refused()
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        assert x.add_(1).sum().item() == 6
        assert not isinstance(x.cpu(), OnMps)


@needs_fake_mps
@pytest.mark.parametrize("settings", [SMALL, GUIDED], ids=["few-step", "guided"])
def test_a_stream_on_it_is_that_of_the_cpu(settings, tmp_path):
    """Blocks past the window, another prompt, a fork, a step back, an exact and a light snapshot."""

    def blocks(pipe):
        stream = pipe.stream(PROMPT, seed=3)
        made = take(stream, 4)
        stream.change_prompt(OTHER)
        made += take(stream, 1)
        fork = stream.fork()
        made += take(stream, 1)
        stream.rewind(1)
        made += [*take(stream, 1), *take(fork, 1)]
        for kind in ("exact", "light"):
            stream.save(tmp_path / kind, kind=kind)
            made += take(pipe.resume(tmp_path / kind), 1)
        return made

    expected = blocks(stand_in_pipeline("HS", settings))
    with fake_mps(), torch.no_grad():
        pipe = stand_in_pipeline("HS", settings).to("mps")
        assert all(isinstance(parameter, OnMps) for parameter in pipe.transformer.parameters())
        made = blocks(pipe)
    for ours, theirs in zip(made, expected, strict=True):
        # Both compute in float32; one of the two keeps sums and sigmas in float64.
        assert relative(on_cpu(ours.latents), theirs.latents) < 2e-5
        assert (on_cpu(ours.video).float() - theirs.video.float()).abs().max() < 1e-3


@pytest.mark.parametrize("module", [chunked, blockwise])
@pytest.mark.parametrize("strong", [0.0, 30.0, 1e4, 1e7])
def test_the_state_with_float32_sums_is_that_of_the_recurrence(module, strong):
    """A strong decay in the middle of each chunk, weak ones after it: what plain float32 sums would lose."""
    tokens = 150
    g = -torch.rand(2, tokens, 2, generator=torch.Generator().manual_seed(4)) * 2e-2
    g[:, 20::64] -= strong
    k = torch.nn.functional.normalize(randn(2, tokens, 2, 8, seed=1), dim=-1)
    given = {
        "k": k,
        "v": randn(2, tokens, 2, 6, seed=2),
        "g": g,
        "beta": torch.rand(2, tokens, 2, generator=torch.Generator().manual_seed(9)),
    }
    given["initial_state"] = randn(2, 2, 8, 6, seed=3)
    expected = naive.gated_delta_state(**given)
    with without_float64():
        state = module.gated_delta_state(**given)
    wide = module.gated_delta_state(**given)
    assert relative(state, expected) <= 2 * relative(wide, expected) + 1e-7


@pytest.mark.parametrize("largest", [1.0, 1e4, 1e8])
def test_differences_of_float32_sums(largest):
    """At most two roundings (2**-23) of the difference, and 2**-44 of the sum."""
    generator = np.random.default_rng(5)
    g = torch.from_numpy(-generator.random((50, 64)) * 10 ** generator.uniform(-6, np.log10(largest), (50, 64))).float()
    (exact,) = cumulative(g, 1)
    with without_float64():
        high, low = sums = cumulative(g, 1)
    assert high.dtype == low.dtype == torch.float32
    first, second = (difference((s[:, :, None],), (s[:, None, :],)) for s in (exact, high))
    ours = difference(tuple(s[:, :, None] for s in sums), tuple(s[:, None, :] for s in sums))
    allowed = 2**-23 * first.abs() + 2**-44 * exact.abs()[:, :, None].maximum(exact.abs()[:, None, :])
    assert ((ours.double() - first).abs() <= allowed).all()
    assert ((second.double() - first).abs() > allowed).any()  # what is kept beside the sums is needed


def test_gradients_go_through_the_pairs():
    g = (-torch.rand(3, 64, generator=torch.Generator().manual_seed(6))).requires_grad_()
    weights = randn(3, 64, 64, seed=7)
    grads = []
    for wide in (True, False):
        with without_float64() if not wide else torch.enable_grad():
            sums = cumulative(g, 1)
        passed = difference(tuple(s[:, :, None] for s in sums), tuple(s[:, None, :] for s in sums))
        grads.append(torch.autograd.grad((passed * weights).sum(), g)[0])
    assert relative(grads[1], grads[0]) < 1e-6


@needs_fake_mps
def test_angles_and_timesteps_keep_their_bits():
    """They are computed in float64 all the same, on the CPU."""
    x = randn(1, 12, 2, 12)
    state = randn(1, 2, 12, 12)
    times = torch.tensor([[937.5, 4.75]], dtype=torch.float64)
    with fake_mps():
        rotation = Rotation.of_grid(range(10_000_000, 10_000_002), 2, 3, 12, "mps")
        assert rotation.cos.device.type == "mps"
        turned, moved = (on_cpu(f(x.to("mps"))) for f in (rotation, lambda y: turn_frames(y, [123_456, 7])))
        memory = RecurrentState.turned(None, "state", state.to("mps"), 55)
        waves = timestep_sinusoids(times.float().to("mps"), 16)
    here = Rotation.of_grid(range(10_000_000, 10_000_002), 2, 3, 12, "cpu")
    assert torch.equal(turned, here(x))
    assert torch.equal(moved, turn_frames(x, [123_456, 7]))
    assert torch.equal(on_cpu(memory), RecurrentState.turned(None, "state", state, 55))
    assert torch.equal(waves, timestep_sinusoids(times, 16))


@needs_fake_mps
def test_the_path_between_data_and_noise_in_float32():
    clean, noise, sigma = randn(2, 3, 4, seed=1), randn(2, 3, 4, seed=2), torch.tensor([[[0.9375]], [[0.3]]])
    wide = add_noise(clean, noise, sigma), velocity_to_clean(clean, noise, sigma)
    timesteps = torch.tensor([999.7, 313.3])
    with fake_mps():
        c, n, s = (x.to("mps") for x in (clean, noise, sigma))
        there = add_noise(c, n, s), velocity_to_clean(c, n, s)
        sigmas = NoiseSchedule().sigmas_at(timesteps.to("mps"))
    for ours, theirs in zip(there, wide, strict=True):
        assert relative(on_cpu(ours), theirs) < 2e-7
    assert torch.equal(on_cpu(sigmas), NoiseSchedule().sigmas_at(timesteps).float())
