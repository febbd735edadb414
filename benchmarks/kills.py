"""kill -9 at random moments of everything that writes, then the same command again: what is lost, what is left?

    python benchmarks/kills.py --kills 200
    python benchmarks/kills.py --only "HLS" --kills 20 --seed 1

Every run is killed once or twice, continued, and compared with one that nobody disturbed: each video frame carries its
number, so a hole and a repeat are seen, as is a picture that differs; tensors are compared to the bit. The commands are
those of ``arl2``, in processes that have everything imported, with a tiny random model. Prints a table in Markdown,
then one line of JSON; the exit status is 1 if anything was lost, repeated, left or changed.
"""

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console

import arl2.cli
import arl2.serving
import arl2.training
import arl2.video
from arl2.cli.main import main as command_line
from arl2.files.records import record_to_mapping
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.blocks import VideoBlock
from arl2.serving.outputs.hls_playlist import PLAYLIST, read_playlist
from arl2.streams.snapshot_file import read_snapshot
from arl2.training.engine.loop import LoopConfig, train
from arl2.training.engine.progress import read_metrics
from arl2.video.reading import read_video
from kills_toy import LinearTask
from soak import tiny_pipeline

PROMPT, OTHER = "a red circle moves right on navy", "a blue square bounces on white"
BLOCKS, BLOCK, FACTOR = 12, 3, 4
_BITS, _SCALE = 8, 2
_FAR = 14.0  # mean difference of levels between a frame and itself after H.264; other frames are 40 and more away


def video_frames(blocks: int) -> int:
    """In the first blocks of a stream."""
    return 1 + FACTOR * (BLOCK * blocks - 1) if blocks else 0


@dataclass
class Damage:
    """What one run, killed and continued, does not have in common with the undisturbed one."""

    lost: int = 0
    repeated: int = 0
    holes: int = 0
    differing: int = 0
    left: list[str] = field(default_factory=list)
    failed: str = ""

    @property
    def any(self) -> bool:
        """Whether there is some."""
        return any(bool(value) for value in vars(self).values())


@dataclass(frozen=True)
class Kind:
    """Something to kill.

    Attributes:
        run: the command in a folder, given the models' folder; called again after a kill.
        compare: the folder with that of an undisturbed run.
        share: of all kills.
    """

    run: Callable[[Path, Path], None]
    compare: Callable[[Path, Path], Damage]
    share: int


# What is run: in a child process, in its own folder.


def command(*words: object) -> None:
    """``arl2`` with these words; raises if it fails."""
    if (code := command_line([str(word) for word in words])) != 0:
        raise RuntimeError(f"exit status {code} of arl2 {' '.join(map(str, words))}")


def blocks_saved(snapshot: Path) -> int:
    """Where a stream continues; 0 without a snapshot."""
    return int(read_snapshot(snapshot)[0]["index"]) if snapshot.exists() else 0


def stream_to(name: Callable[[int], str], every: int) -> Callable[[Path, Path], None]:
    """A stream with snapshots; ``name`` of the output by the block at which this part begins."""

    def run(folder: Path, models: Path) -> None:
        done = blocks_saved(folder / "s.arl2")
        output = folder / name(done)
        if not done and (output.exists() or output.is_symlink()):
            # Nothing was saved: the person begins again.
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        if done == BLOCKS:
            return
        begin = [PROMPT, "--seed", 3] if not done else ["--resume", folder / "s.arl2"]
        if done and output.exists() and output.suffix != ".hls":
            # A part that a kill cut short before its first snapshot.
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        frames = video_frames(BLOCKS) - video_frames(done)
        saving = ["--snapshot", folder / "s.arl2", "--save-every", every]
        more = ["--scale", _SCALE, "--frames", frames, "--quiet", *([] if done else ["--overwrite"])]
        command("stream", "--model", models / "softmax", *begin, *saving, "-o", output, *more)

    return run


def prompts_file(folder: Path, models: Path) -> None:
    """Three videos, each whole with its manifest."""
    (folder / "list.txt").write_text(f"{PROMPT}\n{OTHER}\n{PROMPT} slowly\n")
    words = ["--frames", 33, "--seed", 5, "-o", folder / "videos", "--quiet"]
    command("generate", "--model", models / "softmax", "--prompts-file", folder / "list.txt", *words)


def prompts(folder: Path, models: Path) -> None:
    """Three videos together, and one listing."""
    words = ["--frames", 33, "--seed", 5, "-o", folder / "videos", "--quiet", "--overwrite"]
    words += ["--sheet", folder / "sheet.png", "--latents", folder / "all.safetensors"]
    command("generate", "--model", models / "softmax", PROMPT, OTHER, f"{PROMPT} slowly", *words)


def training(folder: Path, models: Path) -> None:
    """A small network, with checkpoints, evaluations and exports."""
    config = LoopConfig(steps=300, checkpoint_every=15, evaluate_every=60, log_every=10, warmup_steps=10)
    run_config = {"task": "linear", "loop": record_to_mapping(config)}
    train(LinearTask(), config, folder / "run", run_config=run_config, console=Console(quiet=True))


def rollouts(folder: Path, models: Path) -> None:
    """Clips in shards."""
    words = ["--shapes-prompts", 8, "--shard-clips", 2, "--frames", 33, "-o", folder / "clips", "--quiet"]
    command("rollouts", "--model", models / "softmax", *words)


def snapshots(folder: Path, models: Path) -> None:
    """A stream that is saved after each of its blocks, many times."""
    pipe = ARL2Pipeline.from_pretrained(models / "hybrid")
    pipe.set_progress_bar_config(disable=True)
    path = folder / "s.arl2"
    stream = pipe.resume(path) if path.exists() else pipe.stream(PROMPT, seed=3)
    while stream.index < BLOCKS:
        next(stream)
        for _ in range(8):
            stream.save(path)


def rewritten(folder: Path, models: Path) -> None:
    """A converted folder, and exports of both kinds; what is there gives way."""
    command("convert", models / "softmax", "--plan", "HSHS", "-o", folder / "converted", "--overwrite")
    command("export", models / "softmax", "-o", folder / "one.safetensors", "--overwrite")
    command("export", models / "softmax", "-o", folder / "one.pt", "--overwrite")
    ARL2Pipeline.from_pretrained(models / "hybrid").save_pretrained(folder / "saved")


# What is compared.


def numbers_of(frames: np.ndarray) -> list[int]:
    """The number that each frame carries in its upper half; see ``stamped``."""
    stripes = frames[:, : frames.shape[1] // 2].mean(axis=(1, 3)).reshape(len(frames), _BITS, -1).mean(axis=2)
    return [sum(1 << bit for bit in range(_BITS) if one[bit] > 128) for one in stripes]


def stamped(block: VideoBlock, sample: int = 0) -> np.ndarray:
    """The pixels of a block with each frame's number in the upper half: a stripe for each bit."""
    pixels = PIXELS(block, sample).copy()
    _, height, width, _ = pixels.shape
    for offset, frame in enumerate(pixels):
        number = (block.first_video_frame + offset) % 2**_BITS
        bits = np.array([number >> bit & 1 for bit in range(_BITS)], dtype=np.uint8)
        frame[: height // 2] = np.repeat(200 * bits + 25, width // _BITS)[None, :, None]
    return pixels


PIXELS = VideoBlock.pixels


def played(playlist: Path) -> np.ndarray:
    """All frames, as FFmpeg plays it."""
    with av.open(str(playlist)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def compare_frames(found: np.ndarray, expected: np.ndarray) -> Damage:
    """Numbers first, then pictures."""
    numbers, wanted = numbers_of(found), list(range(len(expected)))
    damage = Damage(lost=len(set(wanted) - set(numbers)), repeated=len(numbers) - len(set(numbers)))
    damage.holes = sum(after > before + 1 for before, after in zip([-1, *numbers], numbers, strict=False))
    for number, frame in zip(numbers, found, strict=True):
        far = np.abs(frame.astype(int) - expected[min(number, len(expected) - 1)]).mean() > _FAR
        damage.differing += bool(far)
    return damage


def compare_hls(folder: Path, whole: Path) -> Damage:
    """Over the whole playlist, which must be valid and end; and of the snapshots, to the bit."""
    video, text = folder / "run.hls", (folder / "run.hls" / PLAYLIST).read_text()
    damage = compare_frames(played(video / PLAYLIST), played(whole / "run.hls" / PLAYLIST))
    listed = [segment.name for segment in read_playlist(video, longest=1).listed]
    if not text.endswith("#EXT-X-ENDLIST\n") or sorted(listed) != sorted(one.name for one in video.glob("*.ts")):
        damage.failed = "the playlist does not end, or lists other segments than are there"
    damage.differing += tensors_differ(folder / "s.arl2", whole / "s.arl2")
    damage.left = left_in(folder, {"run.hls", "s.arl2"})
    return damage


def compare_parts(ending: str) -> Callable[[Path, Path], Damage]:
    """Parts of a video, each up to where the next one begins."""

    def compare(folder: Path, whole: Path) -> Damage:
        parts = sorted(one for one in folder.iterdir() if one.name.startswith("part"))
        begins = [video_frames(int(one.stem[4:])) for one in parts]
        read = []
        for part, begin, end in zip(parts, begins, [*begins[1:], video_frames(BLOCKS)], strict=True):
            read.append(read_video(part)[: end - begin])
        damage = compare_frames(np.concatenate(read), read_video(whole / f"part00{ending}"))
        damage.differing += tensors_differ(folder / "s.arl2", whole / "s.arl2")
        damage.left = left_in(folder, {"s.arl2", *(one.name for one in parts)})
        return damage

    return compare


def tensors_differ(path: Path, other: Path) -> int:
    """How many tensors of two snapshots are not the same bits."""
    ours, theirs = read_snapshot(path)[1], read_snapshot(other)[1]
    return sum(name not in ours or not torch.equal(ours[name], one) for name, one in theirs.items())


def compare_bytes(passed_over: Sequence[str] = ()) -> Callable[[Path, Path], Damage]:
    """The same files with the same bytes; of those named, only that they are there."""

    def compare(folder: Path, whole: Path) -> Damage:
        ours, theirs = files_in(folder), files_in(whole)
        damage = Damage(lost=len(theirs.keys() - ours.keys()), left=sorted(ours.keys() - theirs.keys()))
        for name in theirs.keys() & ours.keys():
            if not any(word in name for word in passed_over):
                damage.differing += ours[name].read_bytes() != theirs[name].read_bytes()
        return damage

    return compare


def compare_videos(folder: Path, whole: Path) -> Damage:
    """As files; of manifests, which tell seconds, all else."""
    damage = compare_bytes((".json",))(folder, whole)
    for path in sorted((whole / "videos").glob("*.json")):
        ours, theirs = (json.loads((one / "videos" / path.name).read_text()) for one in (folder, whole))
        damage.differing += {**ours, "seconds": 0} != {**theirs, "seconds": 0}
    return damage


def compare_training(folder: Path, whole: Path) -> Damage:
    """Checkpoints and exports as files; of the metrics, all but the clock."""
    damage = compare_bytes(("run.json", "metrics.jsonl"))(folder, whole)
    ours, theirs = (read_metrics(one / "run" / "metrics.jsonl") for one in (folder, whole))
    timed = ("minutes", "samples_per_second")
    damage.lost += max(0, len(theirs) - len(ours))
    damage.repeated += max(0, len(ours) - len(theirs))
    for one, other in zip(ours, theirs, strict=False):
        damage.differing += any(one.get(name) != value for name, value in other.items() if name not in timed)
    return damage


def compare_snapshots(folder: Path, whole: Path) -> Damage:
    """To the bit."""
    path = folder / "s.arl2"
    return Damage(differing=tensors_differ(path, whole / "s.arl2"), left=left_in(folder, {"s.arl2"}))


def files_in(folder: Path) -> dict[str, Path]:
    """By name; empty folders, too."""
    return {str(one.relative_to(folder)): one for one in folder.rglob("*") if one.is_file() or not any(one.iterdir())}


def left_in(folder: Path, known: set[str]) -> list[str]:
    """What is there and has no business there, also one folder down."""
    found = [one for one in folder.iterdir() if one.name not in known and not one.name.endswith(".cuts.jsonl")]
    inside = [one for name in known for one in (folder / name).glob(".*")]
    return [str(one.relative_to(folder)) for one in (*found, *inside)]


KINDS: Mapping[str, Kind] = {
    "stream to HLS, snapshot each block": Kind(stream_to(lambda _: "run.hls", 1), compare_hls, 50),
    "stream to HLS, snapshot every 3 blocks": Kind(stream_to(lambda _: "run.hls", 3), compare_hls, 40),
    "stream to mp4 with snapshots": Kind(stream_to(lambda at: f"part{at:02d}.mp4", 2), compare_parts(".mp4"), 20),
    "stream to PNGs with snapshots": Kind(stream_to(lambda at: f"part{at:02d}", 2), compare_parts(""), 10),
    "generate --prompts-file": Kind(prompts_file, compare_videos, 20),
    "generate P Q R -o folder": Kind(prompts, compare_bytes(), 10),
    "training": Kind(training, compare_training, 15),
    "rollouts": Kind(rollouts, compare_bytes(), 10),
    "snapshots alone": Kind(snapshots, compare_snapshots, 10),
    "convert, export, save_pretrained": Kind(rewritten, compare_bytes(), 15),
}


# Killing.


def in_child(work: Callable[[], object], log: Path) -> int:
    """Start it in a process of its own; the process's number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finished(child: int, after: float | None = None) -> int | None:
    """Its exit status; None if it was killed ``after`` so many seconds."""
    begun = time.perf_counter()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if after is not None and time.perf_counter() - begun >= after:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)


@dataclass
class Row:
    """Of a kind, all runs together."""

    kills: int = 0
    runs: int = 0
    damage: Damage = field(default_factory=Damage)

    def add(self, damage: Damage) -> None:
        """One more run."""
        self.runs += 1
        for name in ("lost", "repeated", "holes", "differing", "left"):
            setattr(self.damage, name, getattr(self.damage, name) + getattr(damage, name))
        self.damage.failed = self.damage.failed or damage.failed


def measure(kind: Kind, kills: int, draw: random.Random, place: Path, models: Path) -> Row:
    """So many kills of one kind."""
    row, whole = Row(), place / "whole"
    whole.mkdir()
    log = place / "log"
    begun = time.perf_counter()
    if finished(in_child(lambda: kind.run(whole, models), log)):
        raise RuntimeError(f"the undisturbed run failed: {log.read_text()[-2000:]}")
    seconds = time.perf_counter() - begun
    while row.kills < kills:
        folder = place / f"run{row.runs:03d}"
        folder.mkdir()
        for _ in range(min(draw.choice((1, 2, 3)), kills - row.kills)):
            code = finished(in_child(partial(kind.run, folder, models), log), seconds * draw.random())
            row.kills += code is None
            if code is not None:
                break
        damage = continued(kind, folder, whole, models)
        row.add(damage)
        if damage.any:
            print(f"# {folder}: {damage}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)
    return row


def continued(kind: Kind, folder: Path, whole: Path, models: Path) -> Damage:
    """The command once more, undisturbed, and what is then not as it should be; in a process of its own."""
    answer = folder.parent / "answer.json"
    answer.write_text(json.dumps(asdict(Damage(failed="the run that continues failed"))))

    def work() -> None:
        kind.run(folder, models)
        answer.write_text(json.dumps(asdict(kind.compare(folder, whole))))

    finished(in_child(work, folder.parent / "log"))
    return Damage(**json.loads(answer.read_text()))


def tiny_models(folder: Path) -> Path:
    """A softmax and a hybrid one, saved."""
    for name, plan in (("hybrid", "HSHS"), ("softmax", "SSSS")):
        tiny_pipeline(plan).save_pretrained(folder / name)
    return folder


def import_everything() -> None:
    """What commands import when they run; else that is what most kills would hit."""
    for package in (arl2.cli, arl2.serving, arl2.training, arl2.video):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    with contextlib.suppress(ImportError):
        importlib.import_module("datasets.arrow_writer")


def measure_all(kills: int, seed: int, place: Path, only: Sequence[str] = ("",), jobs: int = 1) -> dict[str, Row]:
    """Rows by kind; ``kills`` are shared out, and ``jobs`` kinds measured at a time."""
    import_everything()
    torch.set_num_threads(1)  # threads of a pool do not survive a fork
    os.environ["OMP_NUM_THREADS"] = "1"
    VideoBlock.pixels = stamped  # type: ignore[method-assign]
    models = tiny_models(place / "models")
    chosen = {name: kind for name, kind in KINDS.items() if any(part in name for part in only)}
    shares = sum(kind.share for kind in chosen.values())
    rows: dict[str, Row] = {}
    waiting, running = list(chosen.items()), {}
    while waiting or running:
        if waiting and len(running) < jobs:
            name, kind = waiting.pop(0)
            own = place / name.replace(" ", "-").replace(",", "")
            share = max(1, round(kills * kind.share / shares))
            draw = random.Random(f"{seed} {name}")
            own.mkdir(parents=True)
            running[in_child(partial(_measure_into, own, kind, share, draw, models), own / "said")] = name, own
            continue
        child, status = os.wait()
        name, own = running.pop(child)
        if status:
            raise RuntimeError(f"{name}: {(own / 'said').read_text()[-2000:]}")
        found = json.loads((own / "row.json").read_text())
        rows[name] = Row(found["kills"], found["runs"], Damage(**found["damage"]))
        print(f"# {name}: {rows[name]}", file=sys.stderr, flush=True)
    return {name: rows[name] for name in chosen}


def _measure_into(own: Path, kind: Kind, share: int, draw: random.Random, models: Path) -> None:
    (own / "row.json").write_text(json.dumps(asdict(measure(kind, share, draw, own, models))))


def table(rows: Mapping[str, Row]) -> str:
    """In Markdown."""
    lines = ["| killed | kills | runs | frames or files lost | repeats | holes | left | differing |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        one = row.damage
        numbers = (row.kills, row.runs, one.lost, one.repeated, one.holes, len(one.left), one.differing)
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="kinds measured at a time")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of what is killed")
    parser.add_argument("--folder", type=Path, help="keep what was damaged there (default: a folder that is removed)")
    asked = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure_all(asked.kills, asked.seed, asked.folder or Path(scratch), asked.only, asked.jobs)
    print(table(rows))
    damaged = [name for name, row in rows.items() if row.damage.any]
    figures = {name: asdict(row) for name, row in rows.items()}
    print(json.dumps({"kills": sum(row.kills for row in rows.values()), "damaged": damaged, "rows": figures}))
    print(f"# {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
