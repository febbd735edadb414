"""DMD on clips of any model: where samples are moved to, what each loss reaches, and a run in Wan's layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arl2.checkpoints.conversion import convert
from arl2.errors import ConfigError
from arl2.files.records import record_to_mapping
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.settings import GenerationSettings
from arl2.text.umt5 import UMT5Text
from arl2.training.clips.dataset import Clip
from arl2.training.clips.folder import ClipIndex
from arl2.training.clips.writing import ClipWriter
from arl2.training.conversion.dmd import DistributionMatching, DmdConfig, DmdTask, Flows
from arl2.training.conversion.trainable import trained_parameters
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.processes import Processes
from arl2.training.engine.start import resolved_settings, start_run
from arl2.training.engine.task import Batch
from arl2.video.wan_codec import WanCodec
from support import generator, randn, tiny_model
from text.tiny_umt5 import LENGTH, WIDTH, tiny_text
from video.tiny_wan import narrow_vae

SETTINGS = GenerationSettings(steps=(1000, 500), first_block_steps=(1000, 750, 250), shift=3.0)
CLEAN = randn(2, 4, 6, 4, 4)


def matching(**changes: object) -> DistributionMatching:
    return DistributionMatching(replace(SETTINGS, **changes), 3, shift=3.0)


def constant(value: float):
    """A model whose flow is the noisy clip plus a number, everywhere."""
    return lambda noisy, timestep, run: noisy + value


def test_a_sample_moves_from_the_critics_estimate_to_the_real_ones():
    dmd, run = matching(), TeacherForcing(CLEAN)
    flows = Flows(constant(0.0), constant(0.0), constant(0.5))
    step = dmd.target(flows, CLEAN, run, generator(1)) - CLEAN
    # The critic's flow is 0.5 more, so its estimate is 0.5 sigma less; divided by one number a block.
    there = dmd.noised(CLEAN, generator(1))
    sigma = there.sigma_of_frames
    real = there.noisy - sigma * there.noisy
    for clip in range(2):
        for block, start in enumerate((0, 3)):
            span = slice(start, start + 3)
            away = (CLEAN - real)[clip, :, span].abs().mean()
            expected = torch.full_like(step[clip, :, span], float(0.5 * there.sigma[clip, block] / away))
            torch.testing.assert_close(step[clip, :, span], expected, rtol=1e-4, atol=1e-5)


def test_blocks_may_begin_with_a_first_one_of_another_size():
    dmd = matching(first_block_frames=1)
    assert dmd.opening_frames == 1
    assert [len(span) for span in dmd.noised(randn(1, 4, 7, 4, 4), generator(0)).blocks] == [1, 3, 3]
    assert dmd.kind_of(0, (1, 4), 0.0) == (1, "none")
    assert dmd.kind_of(1, (1, 4), 0.0) == (4, "clip")


@pytest.mark.parametrize("context", [None, CLEAN], ids=["first blocks", "longer clips"])
def test_a_critic_that_agrees_with_the_real_one_moves_nothing(context):
    clean = CLEAN[:, :, :3] if context is None else CLEAN
    flows = Flows(constant(0.1), constant(0.0), constant(0.0))
    losses = matching().losses(flows, clean, context, generator(0))
    assert losses.generator.item() == 0
    assert losses.critic.item() > 0


def test_the_first_block_of_a_longer_clip_is_context(monkeypatch):
    dmd = matching()
    flows = Flows(constant(0.0), constant(0.0), constant(0.0))

    def moved_in_the_first_block(flows, sample, run, draw):
        moved = sample.clone()
        moved[:, :, :3] += 1
        return moved

    monkeypatch.setattr(dmd, "target", moved_in_the_first_block)
    assert dmd.losses(flows, CLEAN, CLEAN, generator(0)).generator.item() == 0
    assert dmd.losses(flows, CLEAN[:, :, :3], None, generator(0)).generator.item() == pytest.approx(0.5)


def test_samples_stop_at_any_step_and_the_last_one_alone_has_gradients():
    seen: set[tuple[bool, float]] = set()
    scale = torch.ones((), requires_grad=True)

    def watched(noisy, timestep, run):
        opening, level = isinstance(run, DiffusionForcing), float(timestep.unique())
        seen.add((opening, level))
        assert torch.is_grad_enabled() or level > 500
        return scale * noisy

    for seed in range(12):
        assert matching().sample(watched, DiffusionForcing(), CLEAN[:, :, :3], generator(seed)).requires_grad
        assert matching().sample(watched, TeacherForcing(CLEAN), CLEAN, generator(seed)).requires_grad
    # 750 and 250 are 900 and 500 under shift 3, 500 is 750.
    assert seen == {(True, 1000.0), (True, 900.0), (True, 500.0), (False, 1000.0), (False, 750.0)}


def test_lengths_and_contexts_come_by_turns():
    kinds = [matching().kind_of(step, (3, 9), 0.5) for step in range(8)]
    assert kinds == [(3, "none"), (9, "clip"), (3, "none"), (9, "rollout")] * 2


FRAMES, CHANNELS = 6, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher in Wan's layout, a hybrid converted from it, both saved, and clips for them."""
    folder = tmp_path_factory.mktemp("wan")
    text = tiny_text()
    settings = replace(SETTINGS, first_block_steps=None, height=32, width=32, num_frames=21)

    def pipeline(plan: str, seed: int) -> ARL2Pipeline:
        sizes = {"in_channels": CHANNELS, "out_channels": CHANNELS, "text_dim": WIDTH, "text_len": LENGTH}
        model = tiny_model(plan, seed, block_frames=3, **sizes)
        return ARL2Pipeline(model, WanCodec(narrow_vae()), text, settings)

    teacher = pipeline("SS", 0)
    teacher.save_pretrained(folder / "teacher")
    hybrid = convert(teacher.transformer, "HS", state_rank=2, ffn_rank=2, seed=1).model
    ARL2Pipeline(hybrid, teacher.codec, text, settings).save_pretrained(folder / "hybrid")
    pipeline("SS", 1).save_pretrained(folder / "other")
    index = ClipIndex(clips=6, shard_clips=6, latents=(CHANNELS, FRAMES, 4, 4), text_width=WIDTH)
    prompts = text.encode(["a cat runs", "a dog jumps"] * 3).detach()
    clips = [Clip(randn(CHANNELS, FRAMES, 4, 4, seed=i), prompts[i], "a cat runs", i) for i in range(6)]
    ClipWriter(folder / "clips", index).write(0, clips)
    return folder


def config(folder: Path, start: str, **changes: object) -> DmdConfig:
    loop = LoopConfig(steps=2, warmup_steps=1, learning_rate=1e-2, evaluate_every=100, adam_betas=(0.0, 0.99))
    settings = DmdConfig(
        loop=loop,
        teacher=str(folder / "teacher"),
        start_from=str(folder / start),
        clips=(str(folder / "clips"),),
        frames=(3, FRAMES),
        batch_frames=2 * FRAMES,
        own_context_share=1.0,
        held_out=2,
        picture_clips=1,
        picture_frames=FRAMES,
    )
    return replace(settings, **changes)


@pytest.mark.parametrize("start", ["hybrid", "other"])
def test_two_steps_in_wans_layout(folder, start, tmp_path):
    settings = config(folder, start)
    task = DmdTask(settings)
    before = {name: tensor.clone() for name, tensor in task.student.state_dict().items()}
    real = {name: tensor.clone() for name, tensor in task.teacher.model.state_dict().items()}
    result = train(task, settings.loop, tmp_path, run_config=record_to_mapping(settings))
    assert result.step == 2
    assert set(result.scores) == {"held_out_generator", "held_out_critic"}
    moved = {name for name, tensor in task.student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    if start == "hybrid":
        assert moved <= set(trained_parameters(task.student, 2))
    assert all(torch.equal(tensor, real[name]) for name, tensor in task.teacher.model.state_dict().items())
    pipe = ARL2Pipeline.from_pretrained(result.export)
    assert isinstance(pipe.text, UMT5Text)
    assert isinstance(pipe.codec, WanCodec)
    assert pipe.transformer.config.layer_plan == ("HS" if start == "hybrid" else "SS")
    latents = pipe("a cat runs", num_frames=21, output_type="latent").frames
    assert latents.shape == (1, CHANNELS, FRAMES, 4, 4)
    task.contact_sheet(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_each_model_is_reached_by_its_own_loss(folder):
    task = DmdTask(config(folder, "other"))
    with torch.no_grad():
        task.critic.head.proj.bias.add_(0.5)
    task.loss(Batch.keyed(0, 1, 0, 1)).value.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in task.student.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in task.critic.parameters())
    assert all(p.grad is None for p in task.teacher.model.parameters())
    # The critic is the real-score model still: what it says moves nothing.
    same = DmdTask(config(folder, "other", own_context_share=0.0))
    assert same.loss(Batch.keyed(0, 0, 0, 1)).logs["generator"].item() == 0


def test_the_command_takes_the_settings_of_any_model(folder, tmp_path):
    words = [f'clips=["{folder}/clips"]', f"teacher={folder}/teacher", f"start_from={folder}/hybrid", "frames=[6]"]
    words += ["batch_frames=12", "held_out=2", "loop.steps=1", "own_context_share=0"]
    assert isinstance(resolved_settings("dmd", None, overrides=words), DmdConfig)
    assert start_run("dmd", tmp_path / "run", overrides=words, device="cpu").reason == "finished"


def test_settings_that_do_not_fit(folder, tmp_path):
    with pytest.raises(ConfigError, match="critic_rate is nan; give a number above 0"):
        config(folder, "hybrid", critic_rate=float("nan"))
    with pytest.raises(ConfigError, match="own_context_share is 2"):
        config(folder, "hybrid", own_context_share=2.0)
    with pytest.raises(ConfigError, match="DMD keeps whole models on every process"):
        DmdTask(config(folder, "hybrid")).shard(Processes())
