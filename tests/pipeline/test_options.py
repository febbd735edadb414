"""One options object: what it refuses, how keywords and settings meet in it, and that every way in takes all of it."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from arl2.errors import Arl2Error, ConfigError, GeometryError, MemoryMismatchError
from arl2.model.settings import GenerationSettings, settings_from_mapping
from arl2.pipeline.options import SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline, StreamKeywords
from arl2.rollout.noise import SeededNoise
from arl2.rollout.settings import RolloutSettings
from arl2.streams.options import SamplingKeywords
from pipeline.stand_in import SETTINGS, stand_in_folder, stand_in_pipeline

PROMPT = "a red circle moves right on navy"


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in use, where nothing checks annotations."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    return stand_in_pipeline()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"window": 10**30}, "give a whole number from 1 to 1000000000"),
        ({"window": 10**5000}, "Got window of 16,610 bits"),
        ({"num_frames": 10**20}, "give a whole number from 1 to 1000000000"),
        ({"first_block_candidates": 20_000}, "give a whole number from 1 to 256"),
        ({"fps": 10_000_000_000}, "give a whole number from 1 to 1000"),
        ({"num_frames": 0}, r"give a whole number from 1\.$"),
    ],
)
def test_numbers_that_no_computer_holds_are_refused(given: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings_from_mapping(given, where="generation.json")
    if "fps" not in given:
        with pytest.raises(ConfigError, match=said):
            SamplingOptions(**given)


def test_every_option_is_a_keyword_of_the_same_type() -> None:
    own = {field.name: field.type for field in fields(SamplingOptions)}
    assert own == SamplingKeywords.__annotations__
    assert own.keys() < StreamKeywords.__annotations__.keys()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_frames", 0, "Got num_frames 0; give a whole number from 1"),
        ("height", 1.5, "Got height 1.5; give a whole number from 1"),
        ("width", True, "Got width True"),
        ("seed", -1, r"Got seed -1; give a whole number from 0 to 18446744073709551615"),
        ("seed", [3, 2**64], "Got seed 18446744073709551616"),
        ("seed", "a", "Got seed 'a'"),
        ("steps", 0, "Got steps 0; give a whole number from 1"),
        ("steps", (500, 1000), r"Got steps \[500, 1000\]; give whole numbers that fall"),
        ("steps", (1001,), "from at most 1000 to above 0"),
        ("steps", (), "Got steps"),
        ("first_block_candidates", 0, "Got first_block_candidates 0"),
        ("window", 0, "Got window 0"),
        ("window", "all", "Got window 'all'"),
        ("sink", -1, "Got sink -1; give a whole number from 0"),
        ("sink_positions", "near", "Got sink_positions 'near'; give absolute or relative"),
        ("negative_prompt", 3, "Got negative_prompt 3; give text"),
        ("guidance_scale", float("nan"), "Got guidance_scale nan; give a finite number"),
        ("guidance_scale", float("inf"), "Got guidance_scale inf"),
        ("guidance_scale", "3", "Got guidance_scale '3'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_values_out_of_range_are_refused_with_what_was_got(name: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SamplingOptions(**{name: value})


def test_one_rule_for_seeds() -> None:
    largest = 2**64 - 1
    assert SamplingOptions(seed=largest).seed == largest
    assert SeededNoise([largest]).seeds == (largest,)
    with pytest.raises(ConfigError, match="Got seed 18446744073709551616"):
        SeededNoise([2**64])


def test_options_stand_over_the_settings() -> None:
    assert SamplingOptions().over(SETTINGS) == SETTINGS
    changed = SamplingOptions(steps=(1000, 500, 250), window=None, height=32, num_frames=9).over(SETTINGS)
    assert changed == replace(SETTINGS, steps=(1000, 500, 250), window=None, height=32, num_frames=9)
    with pytest.raises(ConfigError, match="few-step student"):
        SamplingOptions(guidance_scale=3.0).over(SETTINGS)
    solver = replace(SETTINGS, solver="euler")
    guided = SamplingOptions(guidance_scale=3.0, negative_prompt="blurred", steps=7).over(solver)
    assert (guided.guidance_scale, guided.negative_prompt, guided.solver_steps) == (3.0, "blurred", 7)


def test_an_options_object_is_the_same_as_keywords(pipe: ARL2Pipeline) -> None:
    options = SamplingOptions(num_frames=9, seed=3, steps=1)
    whole = pipe(PROMPT, options=options, output_type="latent").frames
    assert torch.equal(whole, pipe(PROMPT, num_frames=9, seed=3, steps=1, output_type="latent").frames)
    # A keyword wins over the object.
    other = pipe(PROMPT, options=options, seed=4, output_type="latent").frames
    assert torch.equal(other, pipe(PROMPT, num_frames=9, seed=4, steps=1, output_type="latent").frames)
    assert not torch.equal(other, whole)
    with pytest.raises(TypeError, match=r"Unknown argument .num_frame.\. Did you mean .num_frames.\?"):
        pipe.stream(PROMPT, num_frame=9)  # type: ignore[call-arg]


def test_context_noise_is_in_memory_and_not_in_the_first_block(pipe: ARL2Pipeline) -> None:
    clean, noisy = (
        pipe(PROMPT, num_frames=21, seed=3, steps=1, context_noise=timestep, output_type="latent").frames
        for timestep in (None, 200)
    )
    first = pipe.block_frames
    assert torch.equal(clean[:, :, :first], noisy[:, :, :first])
    assert not torch.equal(clean[:, :, first:], noisy[:, :, first:])
    for wrong in (1001, -1, float("nan"), float("inf")):
        for made in (SamplingOptions, GenerationSettings):
            with pytest.raises(ConfigError, match="Got context_noise"):
                made(context_noise=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="Got context_noise"):
            RolloutSettings(GenerationSettings().sampler(), 8, 8, context_noise=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_guidance_that_is_no_number_is_refused_everywhere(scale: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Got guidance_scale"):
        SamplingOptions(guidance_scale=scale)
    with pytest.raises(ConfigError, match="Got guidance_scale"):
        GenerationSettings(solver="unipc", guidance_scale=scale)
    folder = stand_in_folder(tmp_path / "model")
    settings = json.loads((folder / "generation.json").read_text())
    settings |= {"solver": "unipc", "guidance_scale": scale}
    (folder / "generation.json").write_text(json.dumps(settings))
    with pytest.raises(Arl2Error, match=r"NaN|Infinity|guidance_scale"):
        ARL2Pipeline.from_pretrained(folder)


def test_a_check_allocates_and_embeds_nothing(pipe: ARL2Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a check only looks")

    known = torch.zeros(1, 3, 3, 16, 16)
    monkeypatch.setattr(pipe.transformer, "allocate_memory", refused)
    monkeypatch.setattr(pipe.text, "encode", refused)
    checked = pipe.check(SamplingOptions(num_frames=20, window=6), batch=2)
    assert checked.plan is not None
    assert (checked.plan.video_frames, checked.shape.batch, checked.shape.window) == (21, 2, 6)
    assert pipe.check().plan is None
    for options, more, error in (
        (SamplingOptions(height=70), {}, GeometryError),
        (SamplingOptions(window=2), {}, MemoryMismatchError),
        (SamplingOptions(window=9, sink=7), {}, MemoryMismatchError),
        (SamplingOptions(seed=[1, 2]), {}, ConfigError),
        (SamplingOptions(guidance_scale=2.0), {}, ConfigError),
        (SamplingOptions(negative_prompt="blue"), {}, ConfigError),
        (SamplingOptions(first_block_candidates=2), {}, ConfigError),
        (SamplingOptions(num_frames=9), {"known": known}, GeometryError),
        (SamplingOptions(), {"known": known[..., :8]}, GeometryError),
        (SamplingOptions(), {"known": known, "batch": 2}, GeometryError),
    ):
        with pytest.raises(error):
            pipe.check(options, **more)
