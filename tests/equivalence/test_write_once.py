"""Denoising passes leave memory bit-identical; the cache-update pass is the only one that writes."""

import pytest
import torch

from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout import FewStep, SeededNoise, generate_blocks
from support import randn, tiny_model

RELATIVE = {"window": 4, "sink": 1, "sink_positions": "relative"}
PLANS = [("HSH", {}), ("SS", {"window": 5, "sink": 1}), ("SHS", {"window": 4}), ("SH", RELATIVE)]


@pytest.mark.parametrize(("plan", "window"), PLANS)
@torch.no_grad()
def test_reading_any_number_of_times_changes_nothing_that_follows(plan, window):
    model, text = tiny_model(plan, **window), randn(1, 5, 10)

    def stream(reads: int) -> list[torch.Tensor]:
        memory = model.allocate_memory(batch=1, height=4, width=6)
        flows = []
        for i in range(4):
            x, timestep = randn(1, 3, 2, 4, 6, seed=i), torch.full((1, 2), 700.0)
            for _ in range(reads):
                flow = model.predict(x, timestep, text, memory)
            flows.append(flow)
            model.commit(x, torch.zeros(1, 2), text, memory)
        return flows

    once = stream(1)
    for reads in (3, 20):
        assert all(torch.equal(a, b) for a, b in zip(once, stream(reads), strict=True))


@pytest.mark.parametrize(("plan", "window"), PLANS)
def test_every_pass_of_a_rollout_keeps_its_word(plan, window, monkeypatch):
    """Memory is hashed around each pass: predicting leaves it, committing changes it, once a block."""
    model = tiny_model(plan, **window)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    commits = []
    predict, commit = CausalWanTransformer3DModel.predict, CausalWanTransformer3DModel.commit

    def watched_predict(self, latents, timestep, text, memory):
        before, frames = memory.fingerprint(), memory.frames
        flow = predict(self, latents, timestep, text, memory)
        assert memory.fingerprint() == before
        assert memory.frames == frames
        return flow

    def watched_commit(self, latents, timestep, text, memory):
        before, frames = memory.fingerprint(), memory.frames
        commit(self, latents, timestep, text, memory)
        assert memory.fingerprint() != before
        assert memory.frames == frames + 2
        commits.append(frames)

    monkeypatch.setattr(CausalWanTransformer3DModel, "predict", watched_predict)
    monkeypatch.setattr(CausalWanTransformer3DModel, "commit", watched_commit)
    blocks = generate_blocks(
        model,
        randn(1, 5, 10),
        noise=SeededNoise([1]),
        sampler=FewStep(StepPlan.from_steps([1000, 500], schedule=NoiseSchedule())),
        height=4,
        width=6,
        frames=8,
        memory=memory,
    )
    assert [block.index for block in blocks] == [0, 1, 2, 3]
    assert commits == [0, 2, 4, 6]
