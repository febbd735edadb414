"""Clips know the model they were made with: another teacher, codec or text part is refused, unless told otherwise."""

from pathlib import Path

import pytest
import torch
from tests.pipeline.stand_in import stand_in_pipeline
from tests.training.conversion import CLIPS, TEXT_WIDTH, RandomClips, align_config

from arl2.errors import ConfigError
from arl2.pipeline.folder import load_text
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.training.clips.dataset import Clip
from arl2.training.clips.folder import ClipIndex
from arl2.training.clips.origin import origin_facts, part_hash
from arl2.training.clips.writing import ClipWriter
from arl2.training.conversion import origins
from arl2.training.conversion.align import AlignTask
from arl2.training.conversion.batches import open_clips
from arl2.training.conversion.students import load_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher, clips of it (rolled out, and real ones), and teachers that differ in one part."""
    place = tmp_path_factory.mktemp("origin")
    pipe = stand_in_pipeline("SS")
    pipe.save_pretrained(place / "teacher")
    for source in ("rollouts", "videos"):
        write(place / source, {"source": source, **origin_facts(pipe)})
    for part in ("transformer", "codec", "text"):
        other = ARL2Pipeline.from_pretrained(place / "teacher")
        module = {"transformer": other.transformer, "codec": other.codec}.get(part)
        with torch.no_grad():
            tensor = next(iter((module or other.text.encoder).parameters()))
            tensor += 0.5
        other.save_pretrained(place / f"other-{part}")
    return place


def write(folder: Path, facts: dict[str, str]) -> None:
    clips = RandomClips()
    index = ClipIndex(clips=CLIPS, shard_clips=CLIPS, latents=clips.latent_shape, text_width=TEXT_WIDTH, facts=facts)
    ClipWriter(folder, index).write(0, [Clip(clips.latents[i], clips.text[i], "a", i) for i in range(CLIPS)])


def opened(folder: Path, clips: str, teacher: str, dtype: torch.dtype = torch.float32, any_clips: bool = False) -> None:
    open_clips(
        [str(folder / clips)],
        held_out=2,
        teacher=load_teacher(folder / teacher, device="cpu", dtype=dtype),
        name=teacher,
        device=torch.device("cpu"),
        any_clips=any_clips,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clips", ["rollouts", "videos"])
def test_a_teachers_own_clips_are_taken_in_any_precision(folder, clips, dtype):
    opened(folder, clips, "teacher", dtype)


@pytest.mark.parametrize(
    ("clips", "other", "refused"),
    [
        ("rollouts", "transformer", True),
        ("rollouts", "text", True),
        ("rollouts", "codec", False),  # latents are never decoded
        ("videos", "codec", True),
        ("videos", "text", True),
        ("videos", "transformer", False),  # real clips are of no transformer
    ],
)
def test_another_part_is_refused_where_it_matters(folder, clips, other, refused):
    if not refused:
        opened(folder, clips, f"other-{other}")
        return
    said = (
        rf"{clips}' were made with another {other} \(\w{{12}}\) than that of the teacher 'other-{other}' \(\w{{12}}\)"
    )
    with pytest.raises(ConfigError, match=said):
        opened(folder, clips, f"other-{other}")
    opened(folder, clips, f"other-{other}", any_clips=True)


def test_a_part_is_loaded_once_for_all_folders_and_each_folder_is_checked(folder, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(origins, "load_text", lambda place: loaded.append(place) or load_text(place))
    teacher = load_teacher(folder / "teacher", device="cpu", dtype=torch.float32)
    own = [str(folder / name) for name in ("rollouts", "videos", "rollouts")]
    write(tmp_path / "foreign", {"source": "videos", "text_hash": "0" * 64})
    with pytest.raises(ConfigError, match=r"foreign' were made with another text \(0{12}\)"):
        open_clips(
            [*own, str(tmp_path / "foreign")], held_out=2, teacher=teacher, name="it", device=torch.device("cpu")
        )
    assert loaded == [teacher.folder]


def test_a_run_checks_and_can_be_told_not_to(folder, tmp_path):
    settings = {"teacher": str(folder / "other-transformer"), "clips": (str(folder / "rollouts"),)}
    with pytest.raises(ConfigError, match="any_clips=true"):
        AlignTask(align_config(tmp_path, **settings))
    AlignTask(align_config(tmp_path, any_clips=True, **settings))


def test_a_hash_sees_every_tensor_and_no_precision(folder):
    module = torch.nn.Linear(300, 200)  # large enough to be sampled
    first = part_hash(module)
    assert part_hash(module.to(torch.bfloat16)) == first
    with torch.no_grad():
        module.bias[-1] += 1
    assert part_hash(module) != first
    pipe = ARL2Pipeline.from_pretrained(folder / "teacher", torch_dtype=torch.float16)
    assert origin_facts(pipe) == {}


def test_a_folder_begun_before_hashes_were_kept_goes_on(folder, tmp_path):
    write(tmp_path / "clips", {"source": "rollouts"})
    facts = {"source": "rollouts", **origin_facts(ARL2Pipeline.from_pretrained(folder / "teacher"))}
    index = ClipIndex(
        clips=CLIPS, shard_clips=CLIPS, latents=RandomClips().latent_shape, text_width=TEXT_WIDTH, facts=facts
    )
    assert ClipWriter(tmp_path / "clips", index).missing() == []
    with pytest.raises(ConfigError, match="transformer_hash was"):
        ClipWriter(folder / "rollouts", ClipIndex(**{**vars(index), "facts": {**facts, "transformer_hash": "0"}}))
