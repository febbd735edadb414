"""The pipeline: call and stream agree, seeds decide, folders round-trip, mistakes are refused before any work."""

import json
from pathlib import Path

import pytest
import torch

import arl2
from arl2.errors import CheckpointError, ConfigError, GeometryError, MemoryMismatchError
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.frames import plan_frames
from arl2.rollout.settings import GenerationSettings, settings_from_mapping
from arl2.shapes.prompts.parser import PromptError
from pipeline.stand_in import SETTINGS, stand_in_folder, stand_in_pipeline

PROMPTS = ["a red circle moves right on navy", "a blue box bounces"]


@pytest.fixture(scope="module")
def pipe() -> ARL2Pipeline:
    return stand_in_pipeline()


@pytest.mark.parametrize(
    ("asked", "video_frames", "latent_frames"), [(1, 9, 3), (9, 9, 3), (10, 21, 6), (80, 81, 21), (81, 81, 21)]
)
def test_frames_are_rounded_up_to_whole_blocks(asked: int, video_frames: int, latent_frames: int) -> None:
    plan = plan_frames(asked, temporal_factor=4, block_frames=3)
    assert (plan.video_frames, plan.latent_frames) == (video_frames, latent_frames)
    assert (plan.note is None) == (asked == video_frames)


def test_frames_after_a_first_block_of_one() -> None:
    assert plan_frames(2, temporal_factor=4, block_frames=3, first_block_frames=1).latent_frames == 4
    assert plan_frames(1, temporal_factor=4, block_frames=3, first_block_frames=1).latent_frames == 1
    with pytest.raises(GeometryError, match="give 1 or more"):
        plan_frames(0, temporal_factor=4, block_frames=3)


def test_the_stream_is_the_call(pipe: ARL2Pipeline) -> None:
    result = pipe(PROMPTS, num_frames=20, seed=5, output_type="pt")
    assert result.frames.shape == (2, 20, 3, 64, 64)
    assert result.notes == (
        "20 video frames do not fill whole blocks: 21 are generated (6 latent frames), then cut to 20.",
    )
    blocks = list(pipe.stream(PROMPTS, num_frames=20, seed=5))
    assert [(b.index, b.first_video_frame, b.video.shape[2]) for b in blocks] == [(0, 0, 9), (1, 9, 11)]
    assert blocks[1].pixels(1).shape == (11, 64, 64, 3)
    video = torch.cat([block.video for block in blocks], dim=2)
    torch.testing.assert_close((video.clamp(-1, 1) + 1) / 2, result.frames.transpose(1, 2), rtol=0, atol=0)
    latents = pipe(PROMPTS, num_frames=20, seed=5, output_type="latent").frames
    assert torch.equal(latents, torch.cat([block.latents for block in blocks], dim=2))


def test_streamed_decoding_is_decoding_at_once(pipe: ARL2Pipeline) -> None:
    blocks = list(pipe.stream(PROMPTS[0], num_frames=33))
    with torch.no_grad():
        whole = pipe.codec.decode(torch.cat([block.latents for block in blocks], dim=2))
    assert torch.equal(whole, torch.cat([block.video for block in blocks], dim=2))


def test_a_video_depends_on_prompt_and_seed_and_not_on_its_batch(pipe: ARL2Pipeline) -> None:
    both = pipe(PROMPTS, seed=3, output_type="latent").frames
    alone = pipe(PROMPTS[1], seed=4, output_type="latent").frames
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)
    assert torch.equal(both, pipe(PROMPTS, seed=[3, 4], output_type="latent").frames)
    assert not torch.allclose(alone, pipe(PROMPTS[0], seed=4, output_type="latent").frames, atol=1e-2)
    assert not torch.allclose(alone, pipe(PROMPTS[1], seed=5, output_type="latent").frames, atol=1e-2)


def test_generators_as_in_diffusers(pipe: ARL2Pipeline) -> None:
    def latents(generator: torch.Generator | list[torch.Generator]) -> torch.Tensor:
        return pipe(PROMPTS, num_frames=9, generator=generator, output_type="latent").frames

    again = torch.Generator().manual_seed(1)
    first = latents(again)
    assert torch.equal(first, latents(torch.Generator().manual_seed(1)))
    assert not torch.equal(first, latents(again))
    of_each = latents([torch.Generator().manual_seed(seed) for seed in (1, 2)])
    torch.testing.assert_close(of_each[0], first[0], rtol=0, atol=1e-5)


def test_output_types(pipe: ARL2Pipeline) -> None:
    seen = []
    pil = pipe(PROMPTS[0], num_frames=9, callback_on_block_end=lambda _, index, block: seen.append((index, block)))
    assert [index for index, _ in seen] == [0]
    assert len(pil.frames[0]) == 9
    assert pil.frames[0][0].size == (64, 64)
    array = pipe(PROMPTS[0], num_frames=9, output_type="np", return_dict=False)[0]
    assert array.shape == (1, 9, 64, 64, 3)
    assert 0 <= array.min() <= array.max() <= 1


def test_another_picture_size(pipe: ARL2Pipeline) -> None:
    assert pipe(PROMPTS[0], num_frames=9, height=32, width=48, output_type="pt").frames.shape == (1, 9, 3, 32, 48)
    with pytest.raises(GeometryError, match="multiple of 16, such as 64"):
        pipe(PROMPTS[0], height=70)


def test_steps_and_window(pipe: ARL2Pipeline) -> None:
    def levels(steps: int | tuple[int, ...] | None) -> tuple[float, ...]:
        return SETTINGS.sampler(steps).plan.timesteps

    assert levels(4) == levels((1000, 750, 500, 250))
    assert levels(None) == levels((1000, 500)) == levels(2)
    two = pipe(PROMPTS[0], output_type="latent").frames
    assert torch.equal(two, pipe(PROMPTS[0], num_inference_steps=2, output_type="latent").frames)
    assert not torch.equal(two, pipe(PROMPTS[0], steps=(1000,), output_type="latent").frames)
    full, narrow = (pipe(PROMPTS[0], num_frames=33, window=w, output_type="latent").frames for w in (None, 3))
    assert torch.equal(full[:, :, :3], narrow[:, :, :3])
    assert not torch.allclose(full[:, :, 6:], narrow[:, :, 6:])


def test_memory_of_a_stream_does_not_grow(pipe: ARL2Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    allocate = pipe.transformer.allocate_memory
    monkeypatch.setattr(pipe.transformer, "allocate_memory", lambda **sizes: held.append(allocate(**sizes)) or held[-1])
    stream = pipe.stream(PROMPTS[0])
    sizes = []
    for index in range(6):
        assert next(stream).index == index
        sizes.append(held[0].nbytes)
    assert len(held) == 1
    assert len(set(sizes)) == 1
    stream.close()


def test_known_latents_begin_the_video(pipe: ARL2Pipeline) -> None:
    whole = pipe(PROMPTS[0], num_frames=33, output_type="latent").frames
    known = whole[:, :, :6]
    blocks = list(pipe.stream(PROMPTS[0], num_frames=33, known=known))
    assert [block.denoise_seconds == 0 for block in blocks] == [True, True, False]
    assert torch.equal(torch.cat([block.latents for block in blocks], dim=2), whole)
    with pytest.raises(GeometryError, match="ask for more"):
        pipe.stream(PROMPTS[0], num_frames=21, known=known)
    with pytest.raises(GeometryError, match="do not fit"):
        pipe.stream(PROMPTS[0], num_frames=33, known=whole[:, :, :5])
    with pytest.raises(GeometryError, match="give one each"):
        pipe.stream(PROMPTS, num_frames=33, known=known)


def test_mistakes_are_refused_at_once(pipe: ARL2Pipeline) -> None:
    for prompt, said in [("hello", "which this model cannot draw"), ("a red blue ball", "more than one colour")]:
        with pytest.raises(PromptError, match=said):
            pipe.stream(prompt)
    with pytest.raises(ConfigError, match="list of prompts is empty"):
        pipe.stream([])
    with pytest.raises(ConfigError, match="Got num_frames 0; give a whole number from 1"):
        pipe.stream("red", num_frames=0)
    with pytest.raises(MemoryMismatchError, match="use at least 3"):
        pipe.stream("red", window=2)
    for arguments in ({"steps": (500, 1000)}, {"steps": 0}, {"steps": 2, "num_inference_steps": 2}, {"seed": -1}):
        with pytest.raises(ConfigError):
            pipe.stream("red", **arguments)
    with pytest.raises(ConfigError, match="Got 2 seeds for 1 prompts"):
        pipe.stream("red", seed=[1, 2])
    with pytest.raises(ConfigError, match="one of them"):
        pipe.stream("red", seed=1, generator=torch.Generator())


def test_saving_and_loading(pipe: ARL2Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    back = arl2.ARL2Pipeline.from_pretrained(tmp_path / "saved")
    back.set_progress_bar_config(disable=True)
    assert back.settings == pipe.settings
    one, other = (p(PROMPTS, output_type="latent").frames for p in (pipe, back))
    assert torch.equal(one, other)
    half = ARL2Pipeline.from_pretrained(str(tmp_path / "saved"), torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    frames = half(PROMPTS, output_type="pt").frames
    assert frames.dtype == torch.float32
    assert frames.isfinite().all()
    with pytest.raises(ConfigError, match="safetensors"):
        pipe.save_pretrained(tmp_path / "other", safe_serialization=False)


def test_diffusers_knows_its_components(pipe: ARL2Pipeline) -> None:
    assert set(pipe.components) == {"transformer", "codec", "text", "verifier"}
    assert pipe.device.type == "cpu"
    assert pipe.to("cpu") is pipe


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", r"no transformer/\*\.safetensors"),
        ("codec/config.json", r"no codec/config\.json"),
        ("generation.json", r"no generation\.json"),
        ("text/tokenizer/tokenizer.json", r"tokenizer\.json' cannot be read"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, gone: str, said: str) -> None:
    folder = stand_in_folder(tmp_path / "model")
    (folder / gone).unlink()
    with pytest.raises(CheckpointError, match=said):
        ARL2Pipeline.from_pretrained(folder)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = stand_in_folder(tmp_path / "model")
    weights = folder / "codec" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match=r"codec.*is not a whole \.safetensors file"):
        ARL2Pipeline.from_pretrained(folder)
    for name, said in [("os:system", "not known. Accepted: GroupCodec"), ("TinyCodec", "to hold a TinyCodec")]:
        facts = json.loads((folder / "codec" / "config.json").read_text())
        (folder / "codec" / "config.json").write_text(json.dumps({**facts, "_class_name": name}))
        with pytest.raises(CheckpointError, match=said):
            ARL2Pipeline.from_pretrained(folder)
    (folder / "codec" / "config.json").write_text(json.dumps({**facts, "_class_name": "GroupCodec"}))
    weights.write_bytes(whole)
    (folder / "generation.json").write_text('{"text": "shapes", "stepps": [1000]}')
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        ARL2Pipeline.from_pretrained(folder)
    (folder / "generation.json").write_text('{"steps": [1000]}')
    with pytest.raises(CheckpointError, match="Accepted: shapes, words"):
        ARL2Pipeline.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"There is no model 'nothing'\. Accepted: shapes"):
        ARL2Pipeline.from_pretrained("nothing")


@pytest.mark.parametrize(
    "values", [{"steps": 4}, {"steps": [1.5]}, {"height": "64"}, {"shift": True}, {"window": 0}, {"shift": -1.0}]
)
def test_settings_are_strict(values: dict) -> None:
    with pytest.raises(ConfigError):
        settings_from_mapping(values, where="generation.json")


def test_settings_round_trip() -> None:
    settings = GenerationSettings(steps=(1000, 500), first_block_steps=(1000, 750, 500), shift=3, window=21)
    assert settings_from_mapping(settings.to_mapping(), where="test") == settings
    assert len(settings.sampler().timesteps_of(0)) == 3
    assert len(settings.sampler().timesteps_of(1)) == 2
