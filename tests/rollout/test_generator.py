"""The rollout: seeds, resuming, guidance, known starts, and what it refuses."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.errors import ConfigError, GeometryError, MemoryMismatchError, NonFiniteError
from arl2.rollout import FewStep, GivenNoise, MultiStep, SeededNoise, generate_blocks
from support import randn, tiny_model

FEW = FewStep(StepPlan.from_steps([1000, 500], schedule=NoiseSchedule()))
TEXT = randn(1, 5, 10, seed=9)


def rollout(model, seeds=(1,), frames=6, sampler=FEW, text=TEXT, **more):
    text = text.expand(len(seeds), -1, -1)
    blocks = generate_blocks(
        model, text, noise=SeededNoise(list(seeds)), sampler=sampler, height=4, width=6, frames=frames, **more
    )
    return torch.cat([block.latents for block in blocks], dim=2)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**64 - 1), block=st.integers(0, 10**9), draw=st.integers(0, 50), other=st.integers(0, 99))
def test_noise_is_a_function_of_seed_block_and_draw(seed, block, draw, other):
    shape = (1, 2, 1, 2, 3)
    alone = SeededNoise([seed]).sample(block, draw, shape)
    together = SeededNoise([other, seed]).sample(block, draw, (2, *shape[1:]))
    assert torch.equal(alone[0], together[1])
    for neighbour in (
        SeededNoise([seed]).sample(block + 1, draw, shape),
        SeededNoise([seed]).sample(block, draw + 1, shape),
    ):
        assert not torch.equal(alone, neighbour)


def test_noise_is_standard_normal():
    sample = SeededNoise([7]).sample(0, 0, (1, 16, 3, 60, 104))
    assert abs(float(sample.mean())) < 0.01
    assert abs(float(sample.std()) - 1) < 0.01


def test_a_batch_counts_its_seeds_up_and_wraps():
    assert SeededNoise.for_batch(2**64 - 1, 3).seeds == (2**64 - 1, 0, 1)


def test_a_sample_does_not_depend_on_its_batch():
    model = tiny_model("HS")
    together = rollout(model, seeds=(1, 2))
    torch.testing.assert_close(together[1:], rollout(model, seeds=(2,)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_the_same_seed_gives_the_same_bits():
    model = tiny_model("HS")
    assert torch.equal(rollout(model), rollout(model))


@pytest.mark.parametrize(("plan", "window"), [("HS", None), ("SHS", 4)])
def test_going_on_with_memory_equals_never_stopping(plan, window):
    model = tiny_model(plan, window=window)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    first = rollout(model, frames=4, memory=memory)
    rest = rollout(model, frames=10, memory=memory.clone())
    assert torch.equal(torch.cat([first, rest], dim=2), rollout(model, frames=10))


def test_blocks_say_where_they_are():
    model = tiny_model("HS")
    blocks = list(
        generate_blocks(
            model, TEXT, noise=SeededNoise([1]), sampler=FEW, height=4, width=6, frames=5, first_block_frames=1
        )
    )
    assert [(b.index, b.frames.start, b.frames.stop) for b in blocks] == [(0, 0, 1), (1, 1, 3), (2, 3, 5)]
    assert all(b.denoise_seconds > 0 and b.commit_seconds > 0 for b in blocks)


def test_without_a_length_it_goes_on():
    model = tiny_model("H")
    endless = generate_blocks(model, TEXT, noise=SeededNoise([1]), sampler=FEW, height=4, width=6)
    assert [block.index for block in itertools.islice(endless, 12)] == list(range(12))


def test_known_frames_are_remembered_but_not_given_out():
    model = tiny_model("HS")
    whole = rollout(model, frames=6)
    known = rollout(model, frames=6, known=whole[:, :, :4])
    torch.testing.assert_close(known, whole[:, :, 4:])


def test_first_block_levels_are_its_own():
    model = tiny_model("HS")
    plan = StepPlan.from_steps([1000], [1000, 750, 500, 250], schedule=NoiseSchedule())
    seen = []

    def watched(run):
        return lambda x, t, *a: (seen.append(float(t[0, 0])), run(x, t, *a))[1]

    model.predict, model.commit = watched(model.predict), watched(model.commit)
    rollout(model, frames=4, sampler=FewStep(plan))
    assert len(seen) == 4 + 1 + 1 + 1  # four timesteps, a cache update, one timestep, a cache update


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_guidance_keeps_a_memory_for_each_prompt(solver):
    model = tiny_model("HS")
    sampler = MultiStep(steps=3, guidance_scale=2.0, solver=solver)
    memories = [model.allocate_memory(batch=1, height=4, width=6) for _ in range(2)]
    negative = randn(1, 5, 10, seed=33)
    guided = rollout(
        model, frames=4, sampler=sampler, negative_text=negative, memory=memories[0], negative_memory=memories[1]
    )
    assert torch.isfinite(guided).all()
    assert [m.frames for m in memories] == [4, 4]
    assert memories[0].fingerprint() != memories[1].fingerprint()
    # A negative prompt equal to the prompt guides nowhere.
    same = rollout(model, frames=4, sampler=sampler, negative_text=TEXT)
    plain = rollout(model, frames=4, sampler=MultiStep(steps=3, guidance_scale=1.0, solver=solver))
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(guided, plain, rtol=1e-2)


def test_guidance_follows_its_formula():
    """One Euler step from noise to data over one block, by hand."""
    model, scale, negative = tiny_model("S"), 3.0, randn(1, 5, 10, seed=33)
    noise = SeededNoise([4]).sample(0, 0, (1, 3, 2, 4, 6))

    def flow(text):
        memory = model.allocate_memory(batch=1, height=4, width=6)
        with torch.no_grad():
            return model.predict(noise, torch.full((1, 2), 1000.0), text, memory)

    v, v_negative = flow(TEXT), flow(negative)
    expected = noise - (v_negative + scale * (v - v_negative))
    found = rollout(
        model, seeds=(4,), frames=2, sampler=MultiStep(steps=1, guidance_scale=scale), negative_text=negative
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_negative_prompt_that_is_not_used_warns(caplog):
    rollout(tiny_model("H"), frames=2, negative_text=TEXT)
    assert "The negative prompt is not used" in caplog.text


def test_refusals_come_before_the_first_block():
    model = tiny_model("HS")
    with pytest.raises(ConfigError, match="2 seeds for a batch of 1"):
        generate_blocks(model, TEXT, noise=SeededNoise([1, 2]), sampler=FEW, height=4, width=6)
    given_noise = GivenNoise(randn(2, 3, 2, 4, 6), {}, 2)
    with pytest.raises(ConfigError, match="Got noise for 2 samples and a batch of 1"):
        generate_blocks(model, TEXT, noise=given_noise, sampler=FEW, height=4, width=6)


def test_what_it_refuses():
    model = tiny_model("HS")
    with pytest.raises(GeometryError, match="use 4 or 6"):
        rollout(model, frames=5)
    with pytest.raises(ConfigError, match="needs a negative prompt"):
        rollout(model, sampler=MultiStep(steps=2))
    with pytest.raises(ConfigError, match="11 wide but this model takes 10"):
        rollout(model, text=randn(1, 5, 11))
    with pytest.raises(ConfigError, match="have 6 rows; this model takes at most 5"):
        rollout(model, text=randn(1, 6, 10))
    with pytest.raises(GeometryError, match=r"use 2 or 4"):
        rollout(model, known=randn(1, 3, 3, 4, 6))
    with pytest.raises(GeometryError, match=r"known latents are \[1, 4, 2, 4, 6\]; .* needs \[1, 3, 2, 4, 6\]"):
        rollout(model, known=randn(1, 4, 2, 4, 6))
    with pytest.raises(GeometryError, match="6 of 4 frames are known already"):
        rollout(model, frames=4, known=randn(1, 3, 6, 4, 6))
    with pytest.raises(NonFiniteError, match="known latents contain NaN"):
        rollout(model, known=randn(1, 3, 2, 4, 6) * float("nan"))
    memory = model.allocate_memory(batch=1, height=4, width=6)
    rollout(model, frames=2, memory=memory)
    with pytest.raises(GeometryError, match="Known latents begin a stream"):
        rollout(model, memory=memory, known=randn(1, 3, 2, 4, 6))
    with pytest.raises(GeometryError, match="2 latent frames do not fit blocks of 2 after a first one of 1"):
        rollout(model, frames=5, first_block_frames=1, memory=memory)
    with pytest.raises(MemoryMismatchError, match="share one memory"):
        rollout(model, sampler=MultiStep(steps=1), negative_text=TEXT, memory=memory, negative_memory=memory)
    with pytest.raises(MemoryMismatchError, match="batch of 1"):
        rollout(model, seeds=(1, 2), memory=memory)
    guided = MultiStep(steps=1)
    with pytest.raises(MemoryMismatchError, match="at frame 2 but the negative prompt's at 0"):
        rollout(model, sampler=guided, negative_text=TEXT, memory=memory)
    with pytest.raises(ConfigError, match="Got seed -1; give a whole number from 0"):
        SeededNoise([-1])
    with pytest.raises(ConfigError, match="2 seeds for a batch of 1"):
        SeededNoise([1, 2]).sample(0, 0, (1, 3, 2, 4, 6))
    with pytest.raises(GeometryError, match="No noise was given for re-noising 0 of block 3"):
        GivenNoise(randn(1, 3, 2, 4, 6), {}, 2).sample(3, 1, (1, 3, 2, 4, 6))
    with pytest.raises(GeometryError, match=r"\[1, 3, 0, 4, 6\], but the block is"):
        GivenNoise(randn(1, 3, 2, 4, 6), {}, 2).sample(1, 0, (1, 3, 2, 4, 6))
    with pytest.raises(ConfigError, match="steps >= 1"):
        MultiStep(steps=0)


def test_the_first_flow_shows_weights_that_are_not_finite():
    model = tiny_model("HS")
    with torch.no_grad():
        model.layers[1].ffn.up.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"1 weight tensors contain NaN .* first layers\.1\.ffn\.up\.weight"):
        rollout(model)


WRITE_ONLY = ["state.A_log", "state.beta_proj.weight", "state.phi_k", "state.changes.v.A", "state.decay_proj.weight"]


@pytest.mark.parametrize("name", WRITE_ONLY)
def test_nan_in_weights_that_only_write_is_found_when_they_first_write(name):
    model = tiny_model("HS")
    with torch.no_grad():
        model.layers[0].self_attention.get_parameter(name).view(-1)[0] = float("nan")
    memory = model.allocate_memory(batch=1, height=4, width=6)
    with pytest.raises(NonFiniteError, match=rf"first layers\.0\.self_attention\.{name}"):
        rollout(model, memory=memory)
    assert memory.frames == memory.geometry.block_frames  # the state was empty: the first flow showed nothing


def test_prompt_embeddings_that_are_not_finite_are_named():
    model = tiny_model("HS")
    with pytest.raises(NonFiniteError, match="The prompt embeddings contain NaN"):
        rollout(model, text=TEXT * float("inf"))
