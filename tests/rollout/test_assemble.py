"""Published layouts become pipelines: the same parts from either base, and clear words where one is missing."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arl2.checkpoints.hub import Located
from arl2.errors import CheckpointError, ConfigError
from arl2.pipeline.assemble import UntrainedConversionWarning, load_components
from arl2.pipeline.budget import MemoryBudgetError
from arl2.pipeline.fitting import placed
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.pipeline.planning import plan_source
from arl2.pipeline.resolve import resolve_source
from arl2.pipeline.source import open_pipeline
from arl2.video.tiny_codec import TinyCodec
from rollout.published_folders import OWN, diffusers_base, hybrid_file, original_base, student_file
from support import randn, tiny_model

SIZE = {"height": 32, "width": 48, "num_frames": 9, "seed": 3, "steps": (1000, 500), "output_type": "latent"}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    diffusers_base(folder / "diffusers")
    original_base(folder / "original")
    student_file(folder / "student.pt")
    student_file(folder / "ema.pt", ema=True, wrapped=True)
    hybrid_file(folder / "arl2.pt")
    return folder


def source(model: Path | str, **parts: Any) -> ModelSource:
    return ModelSource(model=str(model), **parts)


def assembled(model: Path | str, **parts: Any) -> ARL2Pipeline:
    return open_pipeline(source(model, **parts))


def latents(pipe: ARL2Pipeline, prompt: str = "a cat runs") -> torch.Tensor:
    return pipe(prompt, **SIZE).frames


def test_both_bases_and_every_file_of_one_student_give_the_same_video(disk):
    expected = latents(assembled(disk / "student.pt", base=disk / "diffusers"))
    assert expected.shape == (1, 16, 3, 4, 6)
    for model, base in (("student.pt", "original"), ("ema.pt", "diffusers")):
        assert torch.equal(latents(assembled(disk / model, base=disk / base)), expected)
    # The original folder holds the same student as its own transformer.
    assert torch.equal(latents(assembled(disk / "original")), expected)
    plain = assembled(disk / "ema.pt", base=disk / "diffusers", weights_branch="plain")
    assert not torch.allclose(latents(plain), expected)


def test_the_base_alone_has_its_own_transformer(disk):
    pipe = assembled(disk / "diffusers")
    assert pipe.transformer.config.layer_plan == "SS"
    assert latents(pipe).isfinite().all()


def test_an_arl2_file_tells_its_plan(disk):
    pipe = assembled(disk / "diffusers", weights=disk / "arl2.pt")
    assert (pipe.transformer.config.layer_plan, pipe.transformer.config.state_rank) == ("HS", 2)


def test_a_conversion_without_training_is_said_loudly_and_keeps_the_first_block(disk):
    softmax = assembled(disk / "student.pt", base=disk / "diffusers")
    with pytest.warns(UntrainedConversionWarning, match=r"Layers \[1\] were made hybrid without training") as caught:
        hybrid = assembled(disk / "student.pt", base=disk / "diffusers", hybrid_layers=(1,))
    assert "arl2 train" in str(caught[0].message)
    assert hybrid.transformer.config.layer_plan == "SH"
    torch.testing.assert_close(latents(hybrid), latents(softmax), atol=1e-4, rtol=1e-4)
    # A file that is hybrid there already is taken as it is: no warning.
    same = assembled(disk / "arl2.pt", base=disk / "diffusers", hybrid_layers=(0,))
    assert same.transformer.config.layer_plan == "HS"


def test_a_config_says_blocks_window_and_steps(disk, tmp_path):
    (tmp_path / "x.yaml").write_text(
        "denoising_step_list: [1000, 500]\nwarp_denoising_step: true\nnum_frame_per_block: 1\n"
        "model_kwargs: {timestep_shift: 5.0, local_attn_size: 7, sink_size: 1}\n"
    )
    pipe = assembled(disk / "student.pt", base=disk / "diffusers", config=tmp_path / "x.yaml")
    assert (pipe.block_frames, pipe.transformer.config.window, pipe.transformer.config.sink) == (1, 7, 1)
    assert pipe.settings.steps == (1000, 500)


def test_a_whole_pipeline_is_saved_and_comes_back(disk, tmp_path):
    pipe = assembled(disk / "arl2.pt", base=disk / "original")
    pipe.save_pretrained(tmp_path / "whole")
    again = assembled(tmp_path / "whole")
    assert torch.equal(latents(again), latents(pipe))
    with pytest.raises(ConfigError, match="is a saved pipeline"):
        assembled(tmp_path / "whole", base=disk / "original")


def test_other_weights_over_a_saved_pipeline(disk, tmp_path):
    assembled(disk / "arl2.pt", base=disk / "diffusers").save_pretrained(tmp_path / "whole")
    pipe = assembled(tmp_path / "whole", weights=disk / "student.pt")
    assert torch.equal(latents(pipe), latents(assembled(disk / "student.pt", base=disk / "diffusers")))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("student.pt", {}, "holds a transformer alone; give --base"),
        ("nowhere", {}, "There is no file or folder .*nowhere'; check the path"),
        ("student.pt", {"weights": "ema.pt"}, "Got two checkpoints"),
        ("causal-forcin", {}, "Did you mean 'causal-forcing'"),
    ],
)
def test_what_is_missing_is_named(disk, model, options, words):
    place = model if model == "causal-forcin" else disk / model
    with pytest.raises((CheckpointError, ConfigError), match=words):
        resolve_source(source(place, **{name: disk / value for name, value in options.items()}))


def test_a_model_that_is_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="arl2 download causal-forcing"):
        resolve_source(source("causal-forcing"))
    with pytest.raises(CheckpointError, match="not on the Hub; give their file with --weights"):
        resolve_source(source("arl2"))


@pytest.mark.parametrize(("gone", "words"), [("vae", "has no VAE"), ("text_encoder", "has no text encoder")])
def test_a_base_that_lacks_a_part(disk, tmp_path, gone, words):
    base = shutil.copytree(disk / "diffusers", tmp_path / "base")
    shutil.rmtree(base / gone)
    with pytest.raises(CheckpointError, match=words):
        assembled(disk / "student.pt", base=base)


def test_the_tiny_decoder_moves_encodes_and_goes_on_with_a_video(disk, tmp_path):
    tiny = TinyCodec(encoder_widths=(4, 4, 4, 4), decoder_widths=(8, 4, 4, 4))
    torch.save(tiny.state_dict(), tmp_path / "taew2_1.pth")
    pipe = assembled(disk / "student.pt", base=disk / "diffusers", decoder=str(tmp_path / "taew2_1.pth")).to("cpu")
    assert pipe.device == torch.device("cpu")
    known = pipe.codec.encode(randn(1, 3, 9, 32, 48).clamp(-1, 1))
    whole = pipe("a dog", known=known, **{**SIZE, "num_frames": 21, "output_type": "pt"}).frames
    assert whole.shape == (1, 21, 3, 32, 48)


def test_guidance_keeps_one_window_for_both_prompts(disk):
    pipe = assembled(disk / "student.pt", base=disk / "diffusers")
    pipe.settings = replace(
        pipe.settings, solver="euler", solver_steps=2, guidance_scale=3.0, negative_prompt="a dog", height=32, width=48
    )
    narrow, wide = (pipe("a cat", num_frames=33, window=w, seed=1, output_type="latent").frames for w in (3, None))
    assert narrow.isfinite().all()
    assert not torch.allclose(narrow[:, :, 3:], wide[:, :, 3:])
    # With one block in the window and no past, later blocks are first blocks but for their noise and their place.
    asked = {"num_frames": 9, "window": 3, "seed": 1, "output_type": "latent"}
    torch.testing.assert_close(pipe("a cat", **asked).frames, narrow[:, :, :3])


def test_guidance_and_its_negative_prompt_are_options(disk):
    pipe = assembled(disk / "student.pt", base=disk / "diffusers")
    pipe.settings = replace(pipe.settings, solver="euler", solver_steps=2, height=32, width=48)
    sampled = SamplingOptions(num_frames=9, seed=1, guidance_scale=3.0)

    def latents_of(**changes: Any) -> torch.Tensor:
        return pipe("a cat", options=replace(sampled, **changes), output_type="latent").frames

    # As in diffusers, the empty prompt is the default of what guidance steers away from.
    assert torch.equal(latents_of(), latents_of(negative_prompt=""))
    assert torch.equal(latents_of(), pipe("a cat", num_frames=9, seed=1, guidance_scale=3, output_type="latent").frames)
    others = [latents_of(negative_prompt="a dog"), latents_of(guidance_scale=2.0), latents_of(guidance_scale=1.0)]
    assert not any(torch.allclose(latents_of(), other) for other in others)
    with pytest.raises(ConfigError, match="guidance is off"):
        pipe.stream("a cat", negative_prompt="a dog")
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="give a finite number"):
            replace(sampled, guidance_scale=scale)


def test_a_native_file_keeps_its_own_blocks_and_window(disk, tmp_path):
    own = tiny_model("SS", **{**OWN, "block_frames": 1, "window": 7, "sink": 1})
    own.save_pretrained(tmp_path / "own")
    found = resolve_source(source(disk / "diffusers", weights=tmp_path / "own"))
    pipe = assembled(disk / "diffusers", weights=tmp_path / "own")
    assert (pipe.block_frames, pipe.transformer.config.sink, pipe.settings.window) == (1, 7 - 6, 7)
    plan = plan_source(found, SamplingOptions(num_frames=81))
    assert plan.work.window == 7
    converted = plan_source(replace(found, hybrid_layers=(0, 1)), SamplingOptions(num_frames=81))
    assert converted.cache == 0 < converted.states


def test_weights_of_ones_own_over_a_named_model_need_its_base_alone(monkeypatch, tmp_path):
    asked = []

    def base_alone(card):
        asked.append((card.weights_repo, card.weights_file))
        return Located(tmp_path, None)

    monkeypatch.setattr("arl2.pipeline.resolve.located", base_alone)
    found = resolve_source(source("causal-forcing", weights=tmp_path / "mine.pt"))
    assert asked == [(None, None)]
    assert (found.base, found.weights.path) == (tmp_path, tmp_path / "mine.pt")


def test_one_generation_opens_the_weights_once_and_warns_once(disk, monkeypatch, caplog):
    opened = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **how: opened.append(Path(path).name) or load(path, **how))
    lines = []
    with caplog.at_level(logging.WARNING), pytest.warns(UntrainedConversionWarning) as warned:
        pipe = open_pipeline(
            source(disk / "student.pt", base=disk / "diffusers", hybrid_layers=(1,)),
            SamplingOptions(height=32, width=48, num_frames=9),
            say=lines.append,
        )
    latents(pipe)
    assert opened == ["student.pt"]
    assert len(warned) == 1
    # The stand-in is sampled small, which is said once, too.
    assert [record.getMessage()[:18] for record in caplog.records] == ["Got no config for ", "This model makes v"]
    assert len(lines) == 1


def test_python_users_have_the_memory_check_too(disk, monkeypatch):
    loaded = []
    monkeypatch.setattr("arl2.pipeline.assemble.load_codec", lambda *_, **__: loaded.append(1))
    monkeypatch.setattr("arl2.pipeline.assemble.available_bytes", lambda device: 1_000_000)
    with pytest.raises(MemoryBudgetError, match="are free"):
        ARL2Pipeline.from_pretrained(disk / "student.pt", base=disk / "diffusers")
    assert not loaded


@pytest.mark.parametrize("saved", [False, True])
def test_what_does_not_fit_on_a_gpu_is_kept_off_it_and_said_before_loading(disk, tmp_path, monkeypatch, saved):
    model = source(disk / "student.pt", base=disk / "diffusers")
    if saved:
        ARL2Pipeline.from_pretrained(disk / "student.pt", base=disk / "diffusers").save_pretrained(tmp_path / "whole")
        model = source(tmp_path / "whole")
    options = SamplingOptions(height=32, width=48, num_frames=9)
    whole = plan_source(resolve_source(model), options, device="cuda")
    least = placed(whole, "auto", 1, "cuda")
    assert least.work == replace(whole.work, text_encoder="elsewhere", offload=True)
    kept, lines = [], []
    free = {"cuda": 0, "cpu": 10**9}
    monkeypatch.setattr("arl2.pipeline.assemble.available_bytes", free.get)
    monkeypatch.setattr("arl2.pipeline.assemble.place", lambda _, device, **how: kept.append(how))
    for available in (2 * whole.peak, int(1.1 * least.peak)):
        free["cuda"] = available
        load_components(model, options, device="cuda", say=lines.append)
    assert kept == [{"offload": False, "text_on_device": True}, {"offload": True, "text_on_device": False}]
    assert [line.split(" ")[:3] for line in lines] == [["memory", "on", "cuda:"]] * 2 + [["kept", "off", "cuda,"]]
    # Nothing is loaded that would not fit, on the device or beside it.
    monkeypatch.setattr("arl2.pipeline.assemble.load_codec", lambda *_, **__: kept.append({}))
    free["cpu"] = 1000
    with pytest.raises(MemoryBudgetError, match="kept off the device takes about"):
        load_components(model, options, device="cuda")
    free["cuda"] = 1000
    with pytest.raises(MemoryBudgetError, match=r"on cuda \(.* are free"):
        load_components(model, options, device="cuda")
    assert len(kept) == 2


def test_an_untrained_conversion_is_told_from_its_weights(disk, tmp_path):
    hybrid_file(tmp_path / "untrained.pt", trained=False)
    with pytest.warns(UntrainedConversionWarning, match=r"Layers \[0\] are hybrid and untrained"):
        pipe = assembled(tmp_path / "untrained.pt", base=disk / "diffusers")
    pipe.save_pretrained(tmp_path / "whole")
    with pytest.warns(UntrainedConversionWarning, match=r"Layers \[0\] are hybrid and untrained"):
        ARL2Pipeline.from_pretrained(tmp_path / "whole")
