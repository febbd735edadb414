"""The teacher task: what a batch is made of, and that what it exports is what a pipeline loads."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from rich.console import Console

from arl2.errors import CheckpointError, ConfigError
from arl2.files.plain import read_json
from arl2.files.records import record_to_mapping
from arl2.rollout.settings import settings_from_mapping
from arl2.shapes.training.teacher import TeacherConfig, TeacherModelConfig, TeacherTask
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.start import resolved_settings
from arl2.training.engine.task import Batch

CODEC = str(files("arl2.shapes") / "weights" / "codec")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


def config(latents: Path) -> TeacherConfig:
    sizes = TeacherModelConfig(layer_plan="SS", num_attention_heads=2, attention_head_dim=12, ffn_dim=48)
    loop = LoopConfig(steps=3, warmup_steps=1, evaluate_every=100, optimizer="muon")
    return TeacherConfig(
        loop=loop,
        codec=CODEC,
        latents=str(latents),
        model=sizes,
        clips=16,
        clip_frames=6,
        lengths=(3, 6),
        batch_frames=12,
        evaluation_clips=2,
        evaluation_frames=6,
    )


def test_a_batch_is_decided_by_its_key_alone(latents):
    task = TeacherTask(config(latents))
    first, again = (task.loss(Batch.keyed(0, 5, 0, 1)).value.item() for _ in range(2))
    assert first == again != task.loss(Batch.keyed(0, 6, 0, 1)).value.item()


def test_opening_clips_are_other_scenes_than_the_long_ones(latents):
    task = TeacherTask(replace(config(latents), opening_clips=16))
    assert task.clips.openings.latents.shape[2] == 3
    assert not torch.equal(task.clips.openings.latents, task.clips.longer.latents[:, :, :3])
    plain = TeacherTask(config(latents))
    assert plain.clips.openings is plain.clips.longer


@pytest.mark.filterwarnings("ignore:There are modules")
def test_it_trains_and_exports_what_a_pipeline_loads(latents, tmp_path):
    settings = config(latents)
    task = TeacherTask(settings)
    result = train(
        task, settings.loop, tmp_path / "run", run_config=record_to_mapping(settings), console=Console(quiet=True)
    )
    assert result.step == 3
    again = TeacherTask(replace(settings, start_from=str(result.export)))
    assert again.model.config.layer_plan == "SS"
    generation = read_json(result.export / "generation.json")
    assert generation.pop("text") == "shapes"
    assert settings_from_mapping(generation, where="there").shift == 3.0


@pytest.mark.filterwarnings("ignore:There are modules")
def test_a_guide_pulls_openings_away_from_the_weaker_model(latents, tmp_path):
    plain = TeacherTask(config(latents))
    with torch.no_grad():
        for parameter in plain.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        plain.export(tmp_path / "good")
        plain.model.head.proj.bias.add_(0.5)
        plain.export(tmp_path / "weak")
    openings = replace(config(latents), lengths=(3,), start_from=str(tmp_path / "good"))
    guided = [
        TeacherTask(replace(openings, guide=str(tmp_path / "weak"), guide_weight=weight)) for weight in (0.0, 1.0)
    ]
    at_rest, pulled = (task.loss(Batch.keyed(0, 1, 0, 1)).logs["flow"].item() for task in guided)
    assert at_rest < 1e-4  # the student is the good model already
    # The two models differ by 0.5 everywhere (before the flow is unpatchified, so after it too).
    assert pulled == pytest.approx(0.25, rel=0.05)
    # From the data's flow instead, the same push is added to the same target.
    by_data = TeacherTask(replace(openings, guide=str(tmp_path / "weak"), guide_data=True))
    noise, timestep = torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2, 3), 500.0)
    assert by_data.guidance is not None
    push = by_data.guidance.push(noise, timestep, ["a red circle moves right"] * 2)
    assert push.square().mean().item() == pytest.approx(0.25, rel=0.05)
    unguided = TeacherTask(openings).loss(Batch.keyed(0, 1, 0, 1)).logs["flow"].item()
    assert by_data.loss(Batch.keyed(0, 1, 0, 1)).logs["flow"].item() != pytest.approx(unguided, rel=0.01)
    with pytest.raises(ConfigError, match="give start_from"):
        replace(config(latents), guide="x")
    with pytest.raises(ConfigError, match="guide_weight is -1"):
        TeacherTask(replace(openings, guide=str(tmp_path / "weak"), guide_weight=-1.0))


@pytest.mark.filterwarnings("ignore:There are modules")
def test_below_push_above_the_flow_is_the_datas_own(latents, tmp_path):
    """No level of a batch is 1: nothing is pushed, and weights go by what the model predicts instead of by the clip."""
    plain = TeacherTask(config(latents))
    plain.export(tmp_path / "good")
    with torch.no_grad():
        plain.model.head.proj.bias.add_(0.5)
    plain.export(tmp_path / "weak")
    openings = replace(config(latents), lengths=(3,), start_from=str(tmp_path / "good"))
    guided = replace(openings, guide=str(tmp_path / "weak"), guide_data=True)

    def loss(settings: TeacherConfig) -> tuple[float, float]:
        batch = TeacherTask(settings).loss(Batch.keyed(0, 1, 0, 1))
        return batch.value.item(), batch.logs["flow"].item()

    unpushed = loss(replace(guided, push_above=1.0))
    assert unpushed == loss(replace(openings, push_above=1.0))
    assert loss(guided)[1] > unpushed[1] + 0.1  # pushed by 0.5 everywhere
    # The silent model's estimate is the noisy clip itself, which differs from any background nearly everywhere: the
    # same errors, weighted otherwise than by the clip.
    value, flow = loss(openings)
    assert flow == unpushed[1]
    assert value != pytest.approx(unpushed[0], rel=1e-3)
    without = replace(openings, content_weight=0.0)
    assert loss(without) == loss(replace(without, push_above=1.0))


def test_occluded_clips_take_their_share_of_the_longest_batches(latents):
    task = TeacherTask(replace(config(latents), hiding_clips=16, hiding_share=1.0))
    clips = task.clips
    assert clips.occluded is not None
    draw = torch.Generator().manual_seed(0)
    assert clips.source(6, draw) is clips.occluded
    assert clips.source(3, draw) is clips.openings
    assert not torch.equal(clips.occluded.latents, clips.longer.latents)
    assert bool(clips.occluded.scenes.hides_colour.all())


@pytest.mark.parametrize("shows", [0.0, 0.1])
def test_chosen_first_blocks_are_taught_by_single_blocks_alone(latents, shows, monkeypatch):
    """A model that is right but for the first block of a longer clip has nothing to learn there."""
    task = TeacherTask(replace(config(latents), opening_shows=shows, lengths=(6,)))

    def right_but_for_the_first_block(noisy, timestep, text, *, run):
        flow = (noisy - run.clean) / (timestep / 1000)[:, None, :, None, None]
        return torch.cat([flow[:, :, :3] + 1, flow[:, :, 3:]], 2).requires_grad_()

    monkeypatch.setattr(task.model, "forward", right_but_for_the_first_block)
    taught = task.loss(Batch.keyed(0, 0, 0, 1)).value.item() > 0.01
    assert taught == (shows == 0)


def test_settings_of_the_past_are_accepted_where_they_did_nothing(latents, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**record_to_mapping(config(latents)), "paired_share": 0.0, "level_share": 0.0}))
    assert resolved_settings("teacher", None, settings=path) == config(latents)
    with pytest.raises(ConfigError, match=r"The setting 'paired_share' was removed.*leave it out, or at 0\.0"):
        resolved_settings("teacher", None, settings=path, overrides=["paired_share=3"])


def test_own_context_replaces_the_clip_by_what_the_model_makes_of_it(latents):
    task = TeacherTask(replace(config(latents), own_context_share=1.0, lengths=(6,)))
    clips = task.clips.sample(2, 6, torch.Generator().manual_seed(0))
    clean, text = clips.clean, task.text.encode_captions(clips.captions)
    made = task._context(clean, text, torch.Generator().manual_seed(1))
    # The head of a fresh model is silent: its estimate is the noisy copy itself, noisier than the clip.
    assert made.shape == clean.shape
    assert (made - clean).std() > 0.3
    assert not made.requires_grad
    assert torch.equal(TeacherTask(config(latents))._context(clean, text, torch.Generator()), clean)


def test_settings_that_cannot_be(latents):
    with pytest.raises(CheckpointError, match="There is no folder 'nowhere'"):
        TeacherTask(replace(config(latents), codec="nowhere"))
    with pytest.raises(ConfigError, match="multiple of 8"):
        replace(config(latents), hiding_clips=9)
    with pytest.raises(ConfigError, match="push_above is -1"):
        replace(config(latents), push_above=-1.0)
    with pytest.raises(ConfigError, match="whole blocks of 3"):
        TeacherTask(replace(config(latents), lengths=(4,)))
