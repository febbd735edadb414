"""The codec task: a short run learns, resumes to the bit, and exports what loads; its parts do what they say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arl2.errors import CheckpointError, ConfigError
from arl2.files.records import record_from_mapping, record_to_mapping
from arl2.shapes.codec import GroupCodec
from arl2.shapes.training.codec import CodecConfig, CodecModelConfig, CodecTask, psnr
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import sample_scenes
from arl2.training.engine.loop import LoopConfig
from arl2.training.engine.progress import read_metrics
from arl2.training.engine.start import start_run
from arl2.training.engine.task import Batch

CONFIG = CodecConfig(
    loop=LoopConfig(steps=4, warmup_steps=2, log_every=1, evaluate_every=100, checkpoint_every=2),
    model=CodecModelConfig(latent_channels=4, width=6, deep_width=8, depth=1),
    clips=2,
    crop=16,
    evaluation_clips=2,
    evaluation_video_frames=5,
)


def test_a_run_exports_a_codec_with_unit_latents(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(record_to_mapping(CONFIG)))
    result = start_run("codec", tmp_path / "run", settings=tmp_path / "settings.json", device="cpu")
    assert result.reason == "finished"
    assert {"psnr", "difference_psnr", "psnr_fast", "difference_psnr_fast"} <= result.scores.keys()
    codec = GroupCodec.from_pretrained(result.export, torch_dtype=torch.float32)
    clips = render(sample_scenes(16, seed=5), 17)
    latents = codec.encode(clips)
    assert latents.shape == (16, 4, 5, 8, 8)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.4
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.4
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 5


def test_the_settings_of_a_run_resume_it(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(record_to_mapping(CONFIG)))
    first = start_run(
        "codec", tmp_path / "run", settings=tmp_path / "settings.json", overrides=["loop.max_minutes=0"], device="cpu"
    )
    assert (first.reason, first.step) == ("time is up", 0)
    # Without a settings file the run's own are used.
    again = start_run("codec", tmp_path / "run", overrides=["loop.max_minutes=null"], device="cpu")
    assert (again.reason, again.step) == ("finished", 4)


def test_the_decoder_alone_leaves_latents_as_they_are(tmp_path: Path) -> None:
    CodecTask(CONFIG).export(tmp_path / "first")
    before = GroupCodec.from_pretrained(tmp_path / "first", torch_dtype=torch.float32)
    task = CodecTask(replace(CONFIG, start_from=str(tmp_path / "first"), train_encoder=False))
    (group,) = task.parameter_groups()
    assert all(name.startswith("decoder.") for name in group.parameters)
    task.loss(Batch.keyed(0, 0, 0, 1)).value.backward()
    with torch.no_grad():
        for parameter in group.parameters.values():
            parameter.add_(0.01)
    task.export(tmp_path / "second")
    after = GroupCodec.from_pretrained(tmp_path / "second", torch_dtype=torch.float32)
    clips = render(sample_scenes(2, seed=5), 9)
    assert torch.equal(before.encode(clips), after.encode(clips))
    assert not torch.equal(before.decode(before.encode(clips)), after.decode(after.encode(clips)))
    with pytest.raises(ConfigError, match="name a codec's folder in start_from"):
        CodecTask(replace(CONFIG, train_encoder=False))
    with pytest.raises(CheckpointError, match=r"There is no folder '.*missing'; give the folder of a codec"):
        CodecTask(replace(CONFIG, start_from=str(tmp_path / "missing")))


def test_batches_depend_on_their_key_alone() -> None:
    task = CodecTask(CONFIG)
    first, again, other = (task.loss(Batch.keyed(0, step, 0, 1)).value.item() for step in (3, 3, 4))
    assert first == again != other


def test_psnr_has_a_peak_of_two() -> None:
    assert psnr(torch.zeros(8), torch.full((8,), 0.2)) == pytest.approx(20.0)


def test_settings_survive_json() -> None:
    assert record_from_mapping(CodecConfig, record_to_mapping(CONFIG)) == CONFIG
