"""A model written anew, from a pipeline or from published parts: the folder gives what the parts gave."""

import json
import logging
import resource
from pathlib import Path

import pytest
import torch

from arl2.checkpoints.conversion import convert
from arl2.errors import CheckpointError, ConfigError
from arl2.pipeline import rewriting
from arl2.pipeline.assemble import UntrainedConversionWarning
from arl2.pipeline.options import ModelSource
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.pipeline.resolve import ResolvedSource, resolve_source
from arl2.pipeline.rewriting import write_pipeline
from pipeline.stand_in import stand_in_folder
from rollout.published_folders import diffusers_base, original_base, student_file

SIZE = {"height": 32, "width": 48, "num_frames": 9, "seed": 3, "steps": (1000, 500), "output_type": "latent"}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    diffusers_base(folder / "diffusers")
    original_base(folder / "original")
    student_file(folder / "student.pt")
    return folder


def found(model: Path | str, *, base: Path | None = None, alone: bool = False) -> ResolvedSource:
    return resolve_source(ModelSource(model=str(model), base=base), transformer_alone=alone)


def latents(pipe: ARL2Pipeline) -> torch.Tensor:
    return pipe("a cat runs", **SIZE).frames


@pytest.mark.parametrize("base", ["diffusers", "original"])
def test_published_parts_become_one_folder(disk, tmp_path, base, monkeypatch) -> None:
    monkeypatch.setattr(rewriting, "LINKED_FROM", 1000)
    source = found(disk / "student.pt", base=disk / base)
    write_pipeline(source, source.weights.exact_transformer(), tmp_path / "whole")
    whole = ARL2Pipeline.from_pretrained(tmp_path / "whole")
    parts = ARL2Pipeline.from_pretrained(disk / "student.pt", base=disk / base)
    assert torch.equal(latents(whole), latents(parts))
    assert whole.settings == parts.settings
    if base == "diffusers":  # large files are there once, under two names
        file = "diffusion_pytorch_model.safetensors"
        assert (tmp_path / "whole/codec" / file).samefile(disk / "diffusers/vae" / file)
        assert not (tmp_path / "whole/codec/config.json").samefile(disk / "diffusers/vae/config.json")


def test_links_of_a_cache_become_files(disk, tmp_path) -> None:
    cache = tmp_path / "cache"
    for file in (disk / "diffusers").rglob("*"):
        if file.is_file():
            link = cache / file.relative_to(disk / "diffusers")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    source = found(cache)
    write_pipeline(source, source.weights.exact_transformer(), tmp_path / "whole")
    assert not any(file.is_symlink() for file in (tmp_path / "whole").rglob("*"))
    assert latents(ARL2Pipeline.from_pretrained(tmp_path / "whole")).isfinite().all()


def test_a_converted_transformer_over_the_parts_of_a_pipeline(tmp_path) -> None:
    folder = stand_in_folder(tmp_path / "model")
    source = found(folder)
    made = convert(source.weights.exact_transformer(), "HH", state_rank=2, ffn_rank=2)
    write_pipeline(source, made.model, tmp_path / "new")
    assert json.loads((tmp_path / "new/generation.json").read_text()) == json.loads(
        (folder / "generation.json").read_text()
    )
    with pytest.warns(UntrainedConversionWarning, match=r"Layers \[0\] are hybrid and untrained"):
        pipe = ARL2Pipeline.from_pretrained(tmp_path / "new")
    assert pipe.transformer.config.layer_plan == "HH"


def test_what_cannot_be_written(disk, tmp_path) -> None:
    folder = stand_in_folder(tmp_path / "model")
    source = found(folder)
    with pytest.raises(CheckpointError, match="is there already"):
        write_pipeline(source, source.weights.exact_transformer(), folder)
    alone = found(disk / "student.pt", alone=True)
    with pytest.raises(CheckpointError, match="give --base"):
        write_pipeline(alone, alone.weights.exact_transformer(), tmp_path / "new")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as a full disk: the system refuses to write on
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            write_pipeline(source, source.weights.exact_transformer(), tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model"]


def test_sources_that_cannot_be(disk, tmp_path) -> None:
    folder = stand_in_folder(tmp_path / "model")
    with pytest.raises(ConfigError, match="is a saved pipeline"):
        found(folder, base=disk / "diffusers")
    with pytest.raises(CheckpointError, match="give --base"):
        found(disk / "student.pt")
    with pytest.raises(CheckpointError, match="There is no model"):
        found("nothing")


@pytest.fixture(autouse=True)
def _quiet(caplog) -> None:
    caplog.set_level(logging.ERROR)
