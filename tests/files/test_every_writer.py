"""Whatever is written: nothing of others is removed or written through, and what fails leaves what was there."""

import json
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from arl2.checkpoints.export import export_checkpoint
from arl2.errors import Arl2Error, ConfigError
from arl2.files.atomic import StagedFile, being_written, open_locked, write_new
from arl2.files.locks import lock_folder
from arl2.pipeline.folder import write_generation
from arl2.pipeline.options import ModelSource
from arl2.pipeline.resolve import resolve_source
from arl2.pipeline.rewriting import write_pipeline
from arl2.serving.manifest import Manifest, write_listing, write_manifest
from arl2.serving.outputs.hls import HlsOutput
from arl2.streams.snapshot_file import write_snapshot
from arl2.text.embedding_cache import EmbeddingCache
from arl2.training.clips.dataset import Clip
from arl2.training.clips.folder import ClipIndex
from arl2.training.clips.writing import ClipWriter
from arl2.training.conversion.bar_chart import bar_chart
from arl2.training.engine.checkpoint import RunState, checkpoint_name, save_checkpoint
from arl2.training.engine.loop import LoopConfig, train
from arl2.video.formats import VideoFileError
from arl2.video.sheet import contact_sheet
from arl2.video.writers import open_video
from pipeline.stand_in import SETTINGS, stand_in_folder, stand_in_pipeline
from support import tiny_model
from training.toy import ToyTask

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and locks are those of POSIX")

FRAMES = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
INDEX = ClipIndex(clips=2, shard_clips=2, latents=(1, 1, 8, 8), text_width=2)
TENSORS = {"a": torch.zeros(1000)}
MINE = b"mine"


@dataclass(frozen=True)
class Writer:
    """Something that writes.

    Attributes:
        name: of the output.
        write: it into a folder.
        staged: it is written beside its place, which it takes at the end; else it grows in its place.
        folder: it is a folder.
    """

    name: str
    write: Callable[[Path], object]
    staged: bool = True
    folder: bool = False


def video(name: str) -> Writer:
    def write(place: Path) -> None:
        with open_video(place / name, fps=8) as output:
            output.write(FRAMES)

    return Writer(name, write, staged=False, folder="." not in name)


def hls(place: Path) -> None:
    with HlsOutput(place / "a.hls", fps=8) as output:
        output.write(FRAMES)


def manifest(place: Path) -> None:
    (place / "a.mp4").write_bytes(b"video")
    kept = Manifest(
        file="a.mp4",
        file_bytes=5,
        prompt="a" * 4000,
        seed=0,
        frames=1,
        settings={},
        model="m",
        model_hash="",
        latents_sha256="",
        seconds=0.0,
        arl2="",
    )
    write_manifest(place / "a.mp4", kept)


def shard(place: Path) -> None:
    clip = Clip(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2), "words", 0)
    ClipWriter(place, INDEX).write(0, [clip, clip])


def run(place: Path) -> None:
    config = LoopConfig(steps=2, warmup_steps=1, checkpoint_every=1)
    train(ToyTask(), config, place / "run", run_config={"task": "toy"}, console=Console(quiet=True))


def converted(place: Path) -> None:
    source = resolve_source(ModelSource(model=str(stand_in_folder(place.parent / "model"))))
    write_pipeline(source, tiny_model(), place / "converted")


STATE = RunState(1, 0.0, {"a": "b" * 4000}, 1, {})
WRITERS = {
    "mp4": video("a.mp4"),
    "gif": video("a.gif"),
    "webp": video("a.webp"),
    "y4m": video("a.y4m"),
    "PNG folder": video("pngs"),
    "HLS folder": Writer("a.hls", hls, staged=False, folder=True),
    "sheet": Writer("a.png", lambda place: contact_sheet([("words", FRAMES)], every=1, path=place / "a.png")),
    "chart": Writer("a.png", lambda place: bar_chart([("0", 1.0)], title="title", path=place / "a.png")),
    "snapshot": Writer("a.arl2", lambda place: write_snapshot(place / "a.arl2", {}, TENSORS)),
    "manifest": Writer("a.json", manifest),
    "listing": Writer("manifest.jsonl", lambda place: write_listing(place, [{"file": "a.mp4", "words": "a" * 4000}])),
    "settings": Writer("generation.json", lambda place: write_generation(place, "shapes" * 999, SETTINGS)),
    "export .pt": Writer("a.pt", lambda place: export_checkpoint(tiny_model(), place / "a.pt")),
    "export .safetensors": Writer(
        "a.safetensors", lambda place: export_checkpoint(tiny_model(), place / "a.safetensors")
    ),
    "converted folder": Writer("converted", converted, folder=True),
    "saved pipeline": Writer("saved", lambda place: stand_in_pipeline().save_pretrained(place / "saved"), folder=True),
    "checkpoint": Writer(checkpoint_name(1), lambda place: save_checkpoint(place, STATE, TENSORS, keep=2), folder=True),
    "shard": Writer("shards/00000.arrow", shard),
    "shard's marker": Writer("shards/00000.json", shard),
    "index of clips": Writer("clips.json", shard),
    "settings of a run": Writer("run/config.json", run),
    "metrics of a run": Writer("run/metrics.jsonl", run),
    "checkpoint of a run": Writer(f"run/checkpoints/{checkpoint_name(2)}", run, folder=True),
}
STAGED = {name: one for name, one in WRITERS.items() if one.staged}
FILES = {name: one for name, one in WRITERS.items() if not one.folder}


def each(writers: dict[str, Writer]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("writer", writers.values(), ids=writers.keys())


def neighbours(path: Path) -> list[Path]:
    """Names that other programs, and people, give to what is beside a file."""
    stem, name = path.stem, path.name
    names = [f"{name}.partial", f"{name}.part", f"{name}.tmp", f"{name}.old", f"{name}.bak", f"{name}.lock", f".{name}"]
    names += [f".{name}.part", f".{name}.old", f"{stem}.partial", f"{stem}.new"]
    return [path.with_name(one) for one in dict.fromkeys(names)]


@each(WRITERS)
def test_what_lies_beside_it_stays(writer: Writer, tmp_path: Path) -> None:
    place = tmp_path / "place"
    mine = neighbours(place / writer.name)
    place.joinpath(writer.name).parent.mkdir(parents=True)
    for number, path in enumerate(mine):
        if number % 2:
            path.write_bytes(MINE)
        else:
            path.mkdir()
            (path / "mine.txt").write_bytes(MINE)
    writer.write(place)
    assert (place / writer.name).exists()
    for number, path in enumerate(mine):
        assert (path if number % 2 else path / "mine.txt").read_bytes() == MINE
    ours = [one.name for one in place.joinpath(writer.name).parent.iterdir() if one not in mine]
    assert [name for name in ours if name.startswith(".") or name.endswith("part")] == []


@each(FILES)
@pytest.mark.parametrize("hard", [False, True], ids=["symbolic link", "second name"])
def test_what_a_link_points_to_stays(writer: Writer, tmp_path: Path, hard: bool) -> None:
    """The name gets the new file, and what it stood for before keeps its content."""
    place, far = tmp_path / "place", tmp_path / "far"
    path = place / writer.name
    path.parent.mkdir(parents=True)
    content = json.dumps({"file": "a"}).encode() if path.suffix == ".jsonl" else MINE
    if writer.name in ("clips.json", "shards/00000.json"):
        shard(tmp_path / "other")
        content = (tmp_path / "other" / writer.name).read_bytes()
        path.parent.mkdir(exist_ok=True)
        if writer.name != "clips.json":
            content = b'{"bytes": 1, "clips": 2}'
    if writer.name == "run/metrics.jsonl":
        content = b'{"step": 0}\n'
    far.write_bytes(content)
    if hard:
        os.link(far, path)
    else:
        path.symlink_to(far)
    writer.write(place)
    assert far.read_bytes() == content
    if writer.name != "clips.json":  # read, and not written again
        assert not path.is_symlink()
        assert path.read_bytes() != content


@each({name: one for name, one in WRITERS.items() if one.folder})
def test_a_folder_behind_a_link_keeps_what_it_has(writer: Writer, tmp_path: Path) -> None:
    place, far = tmp_path / "place", tmp_path / "far"
    far.mkdir()
    (far / "mine.txt").write_bytes(MINE)
    (place / writer.name).parent.mkdir(parents=True)
    (place / writer.name).symlink_to(far)
    try:
        writer.write(place)
    except Arl2Error:
        assert [one.name for one in far.iterdir()] == ["mine.txt"]  # refused
    assert (far / "mine.txt").read_bytes() == MINE


@each(STAGED)
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(writer: Writer, tmp_path: Path) -> None:
    path = tmp_path / "place" / writer.name
    path.parent.mkdir(parents=True)
    dead = [path.with_name(f".{path.name}.0123abc{number}.part") for number in range(2)]
    dead[0].write_bytes(b"half")
    dead[1].mkdir()
    (dead[1] / "half").write_bytes(b"half")
    if writer.name in ("run/metrics.jsonl", "shards/00000.json"):
        path.write_bytes(b'{"step": 0}\n' if "run" in writer.name else b'{"bytes": 1, "clips": 2}')
    living = StagedFile(path.with_name("living"))
    alive = living.part.rename(path.with_name(f".{path.name}.0123abcd.part"))
    if writer.name in ("converted", "shards/00000.arrow"):
        # Long work: it is refused while another process does it.
        with pytest.raises(Arl2Error, match=f"is being written by .*process {os.getpid()} on {socket.gethostname()}"):
            writer.write(tmp_path / "place")
        assert alive.exists()
        alive = alive.rename(path.with_name("alive"))
    writer.write(tmp_path / "place")
    assert [one for one in dead if one.exists()] == []
    assert alive.exists()


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


_SMALL = ("chart", "shard's marker", "index of clips", "settings of a run", "metrics of a run", "checkpoint of a run")


@each({name: one for name, one in STAGED.items() if name not in _SMALL})
def test_a_full_disk_leaves_what_was_there_and_nothing_else(writer: Writer, tmp_path: Path) -> None:
    path = tmp_path / "place" / writer.name
    path.parent.mkdir(parents=True)
    if not writer.folder:
        path.write_bytes(b'{"file": "a"}' if path.suffix == ".jsonl" else MINE)
    if writer.name == "shards/00000.arrow":
        ClipWriter(tmp_path / "place", INDEX)
    if writer.name == "converted":
        stand_in_folder(tmp_path / "model")
    if writer.name == "a.json":
        (tmp_path / "place" / "a.mp4").write_bytes(b"video")
    before = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
    # A sentence; the system's own error only where the caller makes the sentence.
    kinds = (Arl2Error, OSError) if writer.name == "generation.json" else Arl2Error
    with full_disk(200), pytest.raises(kinds) as raised:
        writer.write(tmp_path / "place")
    assert "\n" not in str(raised.value)
    after = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
    assert {one.relative_to(tmp_path): data for one, data in after.items()} == {
        one.relative_to(tmp_path): data for one, data in before.items()
    }


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.y4m", "pngs", "a.hls"])
def test_the_second_writer_learns_who_the_first_is(tmp_path: Path, name: str) -> None:
    def opened() -> HlsOutput:
        return HlsOutput(tmp_path / name, fps=8, append=True) if name == "a.hls" else open_video(tmp_path / name, fps=8)

    with ExitStack() as stack:
        late = None if name == "a.hls" else opened()
        first = stack.enter_context(opened())
        first.write(FRAMES)
        first.flush()
        with pytest.raises(
            VideoFileError,
            match=rf"is being written by another process \(process {os.getpid()} on {socket.gethostname()}\)",
        ):
            (late or opened()).write(FRAMES)
        assert being_written(tmp_path / name)
        first.write(FRAMES)
    assert not being_written(tmp_path / name)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    def second(_: object) -> None:
        with pytest.raises(ConfigError, match=f"is being written by another run .process {os.getpid()} on"):
            run(tmp_path)
        seen.append(True)

    seen: list[bool] = []
    config = LoopConfig(steps=1, warmup_steps=1)
    task = ToyTask(before_loss=second)
    train(task, config, tmp_path / "run", run_config={"task": "toy"}, console=Console(quiet=True))
    assert seen == [True]


def test_a_video_of_another_process_is_not_taken_from_it(tmp_path: Path) -> None:
    first = open_locked(tmp_path / "a")
    with pytest.raises(BlockingIOError):
        open_locked(tmp_path / "a")
    first.write(b"whole")
    first.close()
    assert (tmp_path / "a").read_bytes() == b"whole"
    # A folder's lock, too.
    handle = lock_folder(tmp_path)
    with pytest.raises(BlockingIOError):
        lock_folder(tmp_path)
    os.close(handle)


def test_new_files_replace_nothing_and_have_no_name_before_they_are_whole(tmp_path: Path, monkeypatch) -> None:
    for other_system in (False, True):
        if other_system:
            monkeypatch.delattr(os, "O_TMPFILE", raising=False)
        path = tmp_path / f"new{other_system}"
        write_new(path, b"whole")
        with pytest.raises(FileExistsError):
            write_new(path, b"other")
        assert path.read_bytes() == b"whole"
        assert path.stat().st_mode == (tmp_path / "newFalse").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_a_saved_pipeline_keeps_what_others_have_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    mine = [tmp_path / "README.md", tmp_path / "transformer" / "notes.txt"]
    for path in mine:
        path.write_bytes(MINE)
    # What an older, larger model left would be read as part of the new one.
    old = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    old.write_text("{}")
    stand_in_pipeline().save_pretrained(tmp_path)
    assert [path.read_bytes() for path in mine] == [MINE, MINE]
    assert not old.exists()
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").exists()
    assert [one.name for one in tmp_path.rglob(".*")] == []


def test_an_embedding_cache_is_no_different(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache")
    cache.write("0" * 64, torch.ones(2, 4))
    (file,) = (tmp_path / "cache").iterdir()
    (tmp_path / "far").write_bytes(MINE)
    file.unlink()
    file.symlink_to(tmp_path / "far")
    cache.write("0" * 64, torch.ones(2, 4))
    assert (tmp_path / "far").read_bytes() == MINE
    assert not file.is_symlink()
