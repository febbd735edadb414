"""DMD on scenes: what each loss reaches, own rollouts as context, and that a student goes where it should."""

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from rich.console import Console

from arl2.checkpoints.conversion import convert
from arl2.errors import CheckpointError, ConfigError
from arl2.files.plain import read_json
from arl2.files.records import record_to_mapping
from arl2.model.passes import DiffusionForcing, TeacherForcing
from arl2.model.reward_model import RewardModel
from arl2.pipeline.assemble import UntrainedConversionWarning
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.settings import settings_from_mapping
from arl2.shapes.training.captioned import load_export
from arl2.shapes.training.dmd import SceneDmdConfig, SceneDmdTask
from arl2.shapes.training.teacher import TeacherConfig, TeacherModelConfig, TeacherTask
from arl2.training.conversion.trainable import trained_parameters
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.task import Batch

CODEC = str(files("arl2.shapes") / "weights" / "codec")
pytestmark = pytest.mark.filterwarnings("ignore:There are modules")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with weights of its own everywhere, and the same with its flow moved by 0.5."""
    folder = tmp_path_factory.mktemp("exports")
    task = TeacherTask(
        TeacherConfig(
            loop=LoopConfig(steps=1),
            codec=CODEC,
            latents=str(folder / "latents"),
            model=TeacherModelConfig(layer_plan="SS", num_attention_heads=2, attention_head_dim=12, ffn_dim=48),
            clips=16,
            clip_frames=9,
        )
    )
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        task.export(folder / "plain")
        task.model.head.proj.bias.add_(0.5)
        task.export(folder / "moved")
    return folder


def config(exports: Path, **changes: object) -> SceneDmdConfig:
    settings = SceneDmdConfig(
        loop=LoopConfig(steps=3, warmup_steps=1, evaluate_every=100, adam_betas=(0.0, 0.99)),
        codec=CODEC,
        latents=str(exports / "latents"),
        start_from=str(exports / "plain"),
        clips=16,
        clip_frames=9,
        lengths=(3, 9),
        batch_frames=18,
        steps=(1000, 500),
        evaluation_clips=2,
        evaluation_frames=6,
    )
    return replace(settings, **changes)


def gradients(task: SceneDmdTask, step: int) -> dict[str, torch.Tensor]:
    """By name, of one batch."""
    named = {name: p for group in task.parameter_groups() for name, p in group.parameters.items()}
    for parameter in named.values():
        parameter.grad = None
    task.loss(Batch.keyed(0, step, 0, 1)).value.backward()
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None and p.grad.abs().max() > 0}


def shift_critic(task: SceneDmdTask) -> SceneDmdTask:
    """Its critic's flow is 0.5 more than the real one's, everywhere."""
    with torch.no_grad():
        task.critic.model.head.proj.bias.add_(0.5)
    return task


def test_a_batch_is_decided_by_its_key_alone(exports):
    task = shift_critic(SceneDmdTask(config(exports, own_context_share=0.5)))
    for step in (0, 1, 3):
        first, again = (task.loss(Batch.keyed(0, step, 0, 1)).value.item() for _ in range(2))
        assert first == again
        assert first != task.loss(Batch.keyed(1, step, 0, 1)).value.item()


@pytest.mark.parametrize("step", [0, 1], ids=["openings", "longer clips"])
def test_a_critic_that_says_what_the_real_one_says_moves_nothing(exports, step):
    task = SceneDmdTask(config(exports))
    assert task.loss(Batch.keyed(0, step, 0, 1)).logs["moved"].item() == 0
    named = gradients(task, step)
    assert named
    assert all(name.startswith("critic.") for name in named)


@pytest.mark.parametrize("step", [0, 1], ids=["openings", "longer clips"])
def test_each_is_moved_by_its_own_loss(exports, step):
    """Student and critic have the gradients that they have when the other one is frozen; the real one has none."""
    task = shift_critic(SceneDmdTask(config(exports)))
    both = gradients(task, step)
    assert {name.startswith("critic.") for name in both} == {True, False}
    assert all(parameter.grad is None for parameter in task.real.model.parameters())
    for frozen in (task.critic, task):
        parameters = [*frozen.model.parameters(), *frozen.text.encoder.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(False)
        torch.testing.assert_close(gradients(task, step), {n: g for n, g in both.items() if _trains(task, n)})
        for parameter in parameters:
            parameter.requires_grad_(True)


def _trains(task: SceneDmdTask, name: str) -> bool:
    return {n: p.requires_grad for group in task.parameter_groups() for n, p in group.parameters.items()}[name]


def test_a_student_goes_to_where_the_real_one_draws(exports, tmp_path):
    """It begins with its flow moved by 0.5; at the only level, 1, what it makes is 0.5 too low."""
    loop = LoopConfig(
        steps=60, warmup_steps=1, learning_rate=3e-3, evaluate_every=100, adam_betas=(0.0, 0.99), average_decay=0.5
    )
    settings = config(
        exports, loop=loop, start_from=str(exports / "moved"), real=str(exports / "plain"), steps=(1000,), lengths=(3,)
    )
    task = SceneDmdTask(settings)
    noise, timestep = torch.randn(8, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((8, 3), 1e3)
    captions = ["a red circle moves right"] * 8
    with torch.no_grad():
        wanted = task.real.flow(noise, timestep, captions, DiffusionForcing())

        def offset() -> float:
            flow = task.model(noise, timestep, task.text.encode_captions(captions), run=DiffusionForcing())
            return float((flow - wanted).mean())

        before = offset()
        with torch.enable_grad():
            result = train(task, loop, tmp_path / "run", run_config=record_to_mapping(settings), console=_quiet())
        assert before == pytest.approx(0.5, abs=0.01)
        assert abs(offset()) < 0.25
    generation = read_json(result.export / "generation.json")
    assert generation.pop("text") == "shapes"
    assert settings_from_mapping(generation, where="there").steps == (1000,)
    assert SceneDmdTask(replace(settings, start_from=str(result.export))).model.config.layer_plan == "SS"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_longer_clips_are_conditioned_on_the_clip_or_on_the_students_rollout(exports, share, monkeypatch):
    task = SceneDmdTask(config(exports, own_context_share=share))
    contexts = []
    monkeypatch.setattr(task.matching, "losses", lambda flows, clean, context, draw: contexts.append((clean, context)))
    with pytest.raises(TypeError):  # there are no losses
        task.loss(Batch.keyed(0, 1, 0, 1))
    ((clean, context),) = contexts
    assert context.shape == clean.shape
    assert not context.requires_grad
    assert torch.equal(context, clean) == (share == 0)


def test_contexts_come_by_turns_the_same_on_all_processes(exports, monkeypatch):
    """Clips, the student's rollouts, and clips as the student samples them."""
    seen = []
    task = SceneDmdTask(config(exports, own_context_share=0.5, redrawn_share=0.5))
    monkeypatch.setattr(task, "roll_out", lambda *_, **__: seen.append("rollout"))
    monkeypatch.setattr(task.matching, "resampled", lambda *_: seen.append("redrawn"))
    monkeypatch.setattr(task.matching, "losses", lambda *_: seen.append("taught"))
    for step in range(16):
        with pytest.raises(TypeError):  # there are no losses
            task.loss(Batch.keyed(0, step, 0, 1))
    # Single blocks and longer clips alternate.
    turn = [
        "taught",
        "taught",
        "taught",
        "rollout",
        "taught",
        "taught",
        "redrawn",
        "taught",
        "taught",
        "rollout",
        "taught",
    ]
    assert seen == turn + turn


def test_a_redrawn_context_goes_where_the_clip_goes(exports):
    """Its first block is the clip's, each later one what all steps make of noise after the clip's own blocks."""
    task = SceneDmdTask(config(exports, redrawn_share=1.0))
    clips = task.clips.sample(2, 9, torch.Generator().manual_seed(0))
    text = task.text.encode_captions(clips.captions)
    flows = task.flows(text, clips.captions)
    redrawn = task.matching.resampled(flows.student, clips.clean, torch.Generator().manual_seed(1))
    assert not redrawn.requires_grad
    assert torch.equal(redrawn[:, :, :3], clips.clean[:, :, :3])
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(clips.clean.shape, generator=draw)
    for sigma, after in ((1.0, 0.75), (0.75, None)):  # 500 is 750 under shift 3
        with torch.no_grad():
            flow = task.model(x, torch.full((2, 9), 1000 * sigma), text, run=TeacherForcing(clips.clean))
        sample = x - sigma * flow
        if after is not None:
            x = (1 - after) * sample + after * torch.randn(sample.shape, generator=draw)
    torch.testing.assert_close(redrawn[:, :, 3:], sample[:, :, 3:])


def test_clips_are_a_target_where_they_are_the_context(exports):
    settings = config(exports, own_context_share=0.5)
    plain, pulled = (SceneDmdTask(replace(settings, data_weight=weight)) for weight in (0.0, 2.0))
    for step, pulls in enumerate((False, True, False, False)):
        before, after = (task.loss(Batch.keyed(0, step, 0, 1)) for task in (plain, pulled))
        assert after.logs["moved"] == before.logs["moved"]
        extra = (after.value - before.value).item()
        assert extra == pytest.approx(2 * after.logs["data"].item(), rel=1e-4)
        assert (extra > 0) == pulls


def _quiet() -> Console:
    return Console(quiet=True)


def test_a_hybrid_trains_what_its_conversion_did_and_keeps_the_rest(exports, tmp_path):
    plain, text = load_export(str(exports / "plain"))
    hybrid = convert(plain, "HS", state_rank=2, ffn_rank=2, seed=1).model
    hybrid.save_pretrained(tmp_path / "hybrid" / "transformer")
    text.save_pretrained(tmp_path / "hybrid" / "text")
    loop = LoopConfig(steps=2, warmup_steps=1, learning_rate=1e-2, evaluate_every=100, adam_betas=(0.0, 0.99))
    settings = config(exports, loop=loop, start_from=str(tmp_path / "hybrid"), real=str(exports / "moved"))
    task = shift_critic(SceneDmdTask(settings))
    trained = {name for group in task.parameter_groups() for name in group.parameters}
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    assert trained >= set(trained_parameters(task.model, 2))
    result = train(task, loop, tmp_path / "run", run_config=record_to_mapping(settings), console=_quiet())
    moved = {name for name, tensor in task.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert moved <= set(trained_parameters(task.model, 2))
    pipe = ARL2Pipeline.from_pretrained(result.export)
    assert pipe.transformer.config.layer_plan == "HS"
    assert len(pipe("a red circle moves right", num_frames=21).frames[0]) == 21


def test_a_hybrid_keeps_the_verifier_of_its_start_and_a_teacher_does_not(exports, tmp_path):
    plain, text = load_export(str(exports / "plain"))
    start = tmp_path / "start"
    for name, model in (("hybrid", convert(plain, "HS", state_rank=2, ffn_rank=2, seed=1).model), ("teacher", plain)):
        shutil.copytree(exports / "plain", start / name)
        model.save_pretrained(start / name / "transformer")
        RewardModel(16, 3, 8, 8, text.length, text.width, features=8, space=8).save_pretrained(
            start / name / "verifier"
        )
        generation = {**read_json(start / name / "generation.json"), "first_block_candidates": 2}
        (start / name / "generation.json").write_text(json.dumps(generation))
        task = SceneDmdTask(config(exports, start_from=str(start / name), real=str(exports / "moved")))
        task.export(tmp_path / name)
    with pytest.warns(UntrainedConversionWarning):  # no step has trained it
        pipe = ARL2Pipeline.from_pretrained(tmp_path / "hybrid")
    assert pipe.settings.first_block_candidates == 2
    assert len(pipe("a red circle moves right", num_frames=9).frames[0]) == 9
    # A teacher's text part trains on, so what read it before no longer fits.
    teacher = ARL2Pipeline.from_pretrained(tmp_path / "teacher")
    assert (teacher.verifier, teacher.settings.first_block_candidates) == (None, 1)


def test_settings_that_are_refused(exports, tmp_path):
    with pytest.raises(ConfigError, match="data_weight is -1"):
        config(exports, data_weight=-1.0)
    with pytest.raises(ConfigError, match="redrawn_share is 2"):
        config(exports, redrawn_share=2.0)
    with pytest.raises(ConfigError, match="critic_rate is 0"):
        config(exports, critic_rate=0)
    with pytest.raises(ConfigError, match=r"leave first_block_fresh_below at 1 \(it is 0.8\)"):
        config(exports, first_block_fresh_below=0.8)
    with pytest.raises(ConfigError, match="whole blocks of 3"):
        SceneDmdTask(config(exports, lengths=(4,)))
    with pytest.raises(CheckpointError, match=r"has no transformer/config\.json; give a model's name"):
        SceneDmdTask(config(exports, start_from=str(tmp_path)))
    with pytest.raises(ConfigError, match="own_context_share is 2"):
        config(exports, own_context_share=2.0)
