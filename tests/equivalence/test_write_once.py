"""Denoising passes leave memory bit-identical; the clean pass is the only one that writes."""

import pytest
import torch

from arl2.attention.access import Access
from arl2.diffusion.schedule import NoiseSchedule, StepPlan
from arl2.model.passes import Stream
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
                flow = model(x, timestep, text, run=Stream(memory, Access.READ))
            flows.append(flow)
            model(x, torch.zeros(1, 2), text, run=Stream(memory, Access.COMMIT))
        return flows

    once = stream(1)
    for reads in (4, 50):
        assert all(torch.equal(a, b) for a, b in zip(once, stream(reads), strict=True))


@pytest.mark.parametrize(("plan", "window"), PLANS)
def test_every_pass_of_a_rollout_keeps_its_word(plan, window, monkeypatch):
    """Memory is hashed around each pass: READ leaves it, COMMIT changes it, one COMMIT a block."""
    model = tiny_model(plan, **window)
    memory = model.allocate_memory(batch=1, height=4, width=6)
    commits = []
    forward = CausalWanTransformer3DModel.forward

    def watched(self, latents, timestep, text, *, run):
        before, frames = run.memory.fingerprint(), run.memory.frames
        flow = forward(self, latents, timestep, text, run=run)
        if run.access is Access.READ:
            assert run.memory.fingerprint() == before
            assert run.memory.frames == frames
        else:
            assert flow is None
            assert run.memory.fingerprint() != before
            assert run.memory.frames == frames + 2
            commits.append(frames)
        return flow

    monkeypatch.setattr(CausalWanTransformer3DModel, "forward", watched)
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
