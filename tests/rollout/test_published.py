"""Published YAML configs and cards, as settings of generation."""

import json
import logging
from pathlib import Path

import pytest

from arl2.diffusion.schedule import StepPlan
from arl2.errors import ConfigError
from arl2.model.registry import CARDS, WAN_NEGATIVE_PROMPT, find_card
from arl2.pipeline.folder import load_settings, pipeline_folder
from arl2.pipeline.options import ModelSource
from arl2.pipeline.published import read_published_config
from arl2.pipeline.resolve import resolve_source
from arl2.rollout.samplers import FewStep, MultiStep
from arl2.rollout.settings import GenerationSettings, settings_from_mapping

CONFIGS = Path(__file__).parent / "published_configs"
# Spec 3: entries of the schedule of shift 5 for steps 1000 750 500 250.
FOUR = (1000.0, 937.5, 2500 / 3, 625.0)
PLANS = {
    "causal-forcing": StepPlan(FOUR),
    "causal-forcing-framewise": StepPlan(FOUR),
    "causal-forcing-2step": StepPlan((1000.0, 2500 / 3), FOUR),
    "causal-forcing-1step": StepPlan((1000.0,), FOUR),
    "causal-forcing-long": StepPlan(FOUR),
    "self-forcing": StepPlan(FOUR),
    "arl2": StepPlan(FOUR),
}
FILES = {
    "causal-forcing": "chunkwise.yaml",
    "causal-forcing-framewise": "framewise.yaml",
    "causal-forcing-2step": "framewise_2step.yaml",
    "causal-forcing-1step": "framewise_1step.yaml",
}


def plan_of(settings: GenerationSettings) -> StepPlan:
    sampler = settings.sampler()
    assert isinstance(sampler, FewStep)
    return sampler.plan


def same(ours: StepPlan, published: StepPlan) -> bool:
    return all(ours.of_block(block) == pytest.approx(published.of_block(block)) for block in (0, 1, 2, 300))


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PLANS)
def test_step_plans_of_named_models(name):
    card = find_card(name)
    assert same(plan_of(card.settings), PLANS[name])
    assert card.model_settings == {"block_frames": card.block_frames, "window": None, "sink": 0}


@pytest.mark.parametrize("name", FILES)
def test_step_plans_of_published_configs(name):
    published = read_published_config(CONFIGS / FILES[name])
    assert same(plan_of(published.settings), PLANS[name])
    # What a config says and what the card of that model says must be one thing.
    card = find_card(name)
    assert published.settings == card.settings
    assert published.model_settings == card.model_settings


def test_the_first_block_is_the_exception():
    settings = read_published_config(CONFIGS / "framewise_1step.yaml").settings
    assert len(plan_of(settings).of_block(0)) == 4
    assert plan_of(settings).of_block(1) == (1000.0,)


@pytest.mark.parametrize("name", CARDS)
def test_every_card_gives_settings_that_survive_being_saved(name):
    settings = find_card(name).settings
    assert settings_from_mapping(settings.to_mapping(), where="test") == settings


def test_the_multi_step_card():
    sampler = find_card("wan2.1-1.3b").settings.sampler()
    assert isinstance(sampler, MultiStep)
    assert (sampler.steps, sampler.guidance_scale, sampler.solver, sampler.schedule.shift) == (50, 3.0, "unipc", 5.0)
    assert find_card("wan2.1-1.3b").settings.negative_prompt == WAN_NEGATIVE_PROMPT


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.kind == "embedded"])
def test_the_card_of_an_embedded_model_is_what_ships(name):
    folder, card = pipeline_folder(name), find_card(name)
    assert card.settings == load_settings(folder)
    config = json.loads((folder.transformer / "config.json").read_text())
    assert card.model_settings == {key: config[key] for key in ("block_frames", "window", "sink")}


def test_everything_a_config_says():
    published = read_published_config(CONFIGS / "chunkwise.yaml")
    settings = published.settings
    assert (settings.height, settings.width, settings.num_frames) == (480, 832, 81)
    assert (settings.shift, settings.context_noise, settings.first_block_frames) == (5.0, 0.0, None)
    assert (published.seed, published.guidance_scale, published.negative_prompt) == (7, 3.0, "blurred, 模糊")
    assert published.model_settings == {"block_frames": 3, "window": None, "sink": 0}
    # A distilled student is sampled without the guidance that it was trained with.
    assert (settings.guidance_scale, settings.negative_prompt) == (1.0, "")


def test_window_sink_noise_and_picture():
    published = read_published_config(CONFIGS / "windowed.yaml")
    settings = published.settings
    assert published.model_settings == {"block_frames": 3, "window": 12, "sink": 3}
    assert (settings.window, settings.shift, settings.context_noise) == (12, 8.0, 100.0)
    assert (settings.height, settings.width, settings.num_frames) == (352, 640, 49)
    assert settings.first_block_frames == 1
    assert settings.steps == (1000, 750, 500, 250)  # the level 0 at the end needs no pass
    assert published.ignored == ("causal", "model_kwargs.extra_kernel", "weight_decay")


def test_a_config_without_steps_is_of_a_multi_step_model():
    published = read_published_config(CONFIGS / "multi_step.yaml")
    sampler = published.settings.sampler()
    assert isinstance(sampler, MultiStep)
    assert (sampler.steps, sampler.guidance_scale, sampler.solver) == (50, 3.0, "unipc")
    assert published.settings.negative_prompt == "blurred"


def test_one_warning_names_all_ignored_keys(caplog):
    with caplog.at_level(logging.WARNING):
        read_published_config(CONFIGS / "chunkwise.yaml")
    (record,) = caplog.records
    assert record.getMessage().endswith("are ignored: causal, generator_ckpt, lr, trainer, weight_decay")


def test_defaults_beside_a_config(tmp_path):
    text = "denoising_step_list: [1000, 500]\nmodel_kwargs: {sink_size: 1}\n"
    path = write(tmp_path, text)
    alone = read_published_config(path)
    # Published defaults do not warp: the steps are timesteps as they stand.
    assert plan_of(alone.settings).timesteps == (1000.0, 500.0)
    assert alone.model_settings == {"block_frames": 1, "window": None, "sink": 0}
    write(
        tmp_path,
        "warp_denoising_step: true\nnum_frame_per_block: 2\ndenoising_step_list: [9]\n"
        "model_kwargs: {local_attn_size: 6, sink_size: 2, timestep_shift: 3}\n",
        "default_config.yaml",
    )
    beside = read_published_config(path)
    assert beside.model_settings == {"block_frames": 2, "window": 6, "sink": 1}  # merged name by name, the config wins
    assert plan_of(beside.settings).timesteps == pytest.approx((1000.0, 750.0))
    assert read_published_config(tmp_path / "default_config.yaml").settings.steps == (9,)


STEPS = "denoising_step_list: [1000]\n"


@pytest.mark.parametrize(
    ("text", "shift"),
    [
        # The published few-step code samples with the wrapper's shift, 8 unless model_kwargs says another.
        (STEPS, 8.0),
        (STEPS + "model_kwargs: {local_attn_size: -1}\n", 8.0),
        (STEPS + "timestep_shift: 5\nmodel_kwargs: {timestep_shift: 3}\n", 3.0),
        (STEPS + "timestep_shift: 3\n", 8.0),
        # Its solver takes that of training.
        ("guidance_scale: 3\n", 8.0),
        ("timestep_shift: 5\nmodel_kwargs: {timestep_shift: 3}\n", 5.0),
        ("model_kwargs: {timestep_shift: 3}\n", 3.0),
    ],
)
def test_the_shift_that_samples(tmp_path, caplog, text, shift):
    assert read_published_config(write(tmp_path, text)).settings.shift == shift
    said = "timestep_shift 3 is of training alone" in caplog.text
    assert said == (text == STEPS + "timestep_shift: 3\n")


def test_a_solver_commits_at_0(tmp_path):
    config = "context_noise: 100\nguidance_scale: 3\n"
    assert read_published_config(write(tmp_path, config)).settings.context_noise == 0.0


BIDIRECTIONAL = (
    "generator_task: bidirectional_video",
    "generator_task: image",
    "generator_type: bidirectional",
    "generator_name: wan",
    "trainer: bidirectional_diffusion",
    "causal: false",
    "model_kwargs: {is_causal: false}",
)


@pytest.mark.parametrize("text", BIDIRECTIONAL)
def test_bidirectional_configs_are_refused_with_the_reason(tmp_path, text):
    path = write(tmp_path, f"{STEPS}{text}\n")
    with pytest.raises(ConfigError, match="so this is a bidirectional model") as refused:
        read_published_config(path)
    assert str(path) in str(refused.value)
    # Before anything of the model is looked at: there is none.
    with pytest.raises(ConfigError, match="so this is a bidirectional model"):
        resolve_source(ModelSource(base=tmp_path, config=path))


def test_causal_configs_are_not(tmp_path):
    text = f"{STEPS}generator_task: causal_video\ngenerator_name: causal_wan\ncausal: true\nis_causal: true\n"
    assert read_published_config(write(tmp_path, text)).settings.steps == (1000,)


def test_anchors_are_read(tmp_path):
    text = "base: &kwargs {timestep_shift: 3}\nmodel_kwargs: {<<: *kwargs, local_attn_size: -1}\n" + STEPS
    assert read_published_config(write(tmp_path, text)).settings.shift == 3.0


WRONG = {
    "denoising_step_list: 1000": "denoising_step_list is 1000; give a list",
    "denoising_step_list: [1000, '750']": "denoising_step_list is",
    "denoising_step_list: [250, 500]": "list that falls",
    "denoising_step_list: [2000, 500]": "list that falls from at most 1000",
    "denoising_step_list: [0]": "list that falls",
    "denoising_step_list: []": "list that falls",
    "denoising_step_list_first_chunk: [1000]": "without denoising_step_list",
    "warp_denoising_step: 1": "warp_denoising_step is 1; give true or false",
    "num_frame_per_block: three": "num_frame_per_block is 'three'; give a whole number from 1",
    "num_frame_per_block: true": "num_frame_per_block is True",
    "num_frame_per_block: 0": "whole number from 1",
    "independent_first_frame: 'no'": "independent_first_frame is 'no'",
    "context_noise: -1": "context_noise is -1; give a number from 0",
    "context_noise: .nan": "context_noise is nan; give a number from 0",
    "{context_noise: 1001, denoising_step_list: [1000]}": "context_noise is 1001; give a number from 0 to 1000",
    "guidance_scale: .nan": "guidance_scale is nan",
    "guidance_scale: 1" + "0" * 399: "guidance_scale is 1000",
    "seed: 1" + "0" * 500: "a number has 501 characters",
    "seed: 1\nseed: 2": "the key 'seed' appears twice",
    "a: !!int ''": "is not YAML",
    "timestep_shift: .nan": "timestep_shift is nan; give a number above 0",
    "timestep_shift: 0": "timestep_shift is 0",
    "guidance_scale: high": "guidance_scale is 'high'",
    "negative_prompt: 3": "negative_prompt is 3; give a text",
    "seed: 1.5": "seed is 1.5",
    "num_train_timestep: 2000": "num_train_timestep is 2000; give 1000",
    "image_or_video_shape: [1, 21, 60, 104]": "five whole numbers",
    "image_or_video_shape: [1, 21, 16, 60, -2]": "five whole numbers",
    "model_kwargs: 5": "model_kwargs is 5; give names and values",
    "model_kwargs: {local_attn_size: -2}": "model_kwargs.local_attn_size is -2",
    "model_kwargs: {local_attn_size: 12, sink_size: x}": "model_kwargs.sink_size is 'x'",
    "{num_frame_per_block: 3, model_kwargs: {local_attn_size: 4, sink_size: 2}}": "cannot hold sink_size 2",
    "- 1": "holds list; a config has names and values",
    "1: 2": "a config has names and values",
    "a: [": "is not YAML",
    "!!python/object/apply:os.system ['true']": "is not YAML",
    "a: 2026-99-99": "is not YAML",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_is_refused_with_key_and_file(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_published_config(path)
    assert WRONG[text] in str(refused.value)
    assert str(path) in str(refused.value)


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_published_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"is too large: .* at most 1,000,000 are read"):
        read_published_config(write(tmp_path, "a: 1\n" + "#" * 1_000_000))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="this is not UTF-8 text"):
        read_published_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_published_config(write(tmp_path, "[" * 1500))
