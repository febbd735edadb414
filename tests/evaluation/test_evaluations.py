"""``arl2 eval`` from plan to results: pairs, exclusions, resuming, several processes, a teacher and its students."""

import importlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arl2.errors import Arl2Error, ConfigError
from arl2.evaluation.report.writing import write_results
from arl2.evaluation.suites.bootstrap import estimate
from arl2.evaluation.suites.evaluate import evaluate
from arl2.evaluation.suites.exclusions import Exclusion, grouped
from arl2.evaluation.suites.folder import folder_subject
from arl2.evaluation.suites.plan import Plan, make_plan
from arl2.evaluation.suites.registry import open_suite
from arl2.evaluation.suites.run import record_path
from arl2.evaluation.suites.suite import Subject, SuiteOptions
from arl2.evaluation.suites.summary import Results
from arl2.streams.options import SamplingOptions
from arl2.video.writers import open_video
from pipeline.stand_in import stand_in_pipeline

WRITTEN = ("results.json", "report.html", "report.md")


def write_video(path: Path, frames: np.ndarray, **facts) -> None:
    with open_video(path, settings=facts) as writer:
        writer.write(frames)


def clip(seed: int, *, frames: int = 5, side: int = 16) -> np.ndarray:
    """Still noise, so that every encoder shows nearly the same."""
    return np.repeat(np.random.default_rng(seed).integers(60, 190, (1, side, side, 3), np.uint8), frames, axis=0)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two systems' videos of three prompts: one named as VBench does, one with a manifest; the first flickers."""
    named, listed = tmp_path / "named", tmp_path / "listed"
    named.mkdir(), listed.mkdir()
    lines = []
    for number, prompt in enumerate(("a cat", "a dog", "a bird")):
        flickering = clip(number).copy()
        flickering[1::2] //= 2
        write_video(named / f"{prompt}-0.mp4", flickering)
        write_video(listed / f"{number}.mp4", clip(number))
        lines.append({"file": f"{number}.mp4", "prompt": prompt, "seed": 7})
    (listed / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [named, listed]


def plan_of(*subjects: Subject, suite: str = "video", batch: int = 2, **options) -> Plan:
    return make_plan(open_suite(suite), subjects, SuiteOptions(**options), batch=batch)


def run(plan: Plan, folder: Path, **how) -> Results:
    results = evaluate(plan, folder, **how)
    write_results(results, folder)
    return results


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in WRITTEN]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A saved teacher, and another model of its size."""
    places = []
    for plan in ("SS", "SH"):
        place = tmp_path_factory.mktemp("models") / plan
        stand_in_pipeline(plan).save_pretrained(place)
        places.append(place)
    return places


def model(place: Path, **own) -> Subject:
    return Subject(place.name, "model", str(place), SamplingOptions(**own))


PROMPTS = (("a red circle moves right on navy", None), ("a blue square falls on white", 5), ("a cyan ball on black", 9))


def test_videos_of_the_same_prompts_are_pairs(folders: list[Path], tmp_path: Path) -> None:
    with (folders[1] / "manifest.jsonl").open("a") as manifest:
        for number, prompt in enumerate(("a fox", "a hen", "an ox"), start=3):  # six: enough for a verdict
            flickering = clip(number).copy()
            flickering[1::2] //= 2
            write_video(folders[0] / f"{prompt}-0.mp4", flickering)
            write_video(folders[1] / f"{number}.mp4", clip(number))
            manifest.write(json.dumps({"file": f"{number}.mp4", "prompt": prompt, "seed": 7}) + "\n")
    results = run(plan_of(*(folder_subject(one, one.name) for one in folders)), tmp_path / "out")
    flicker = results.means["named"]["undone_flicker"], results.means["listed"]["undone_flicker"]
    assert flicker[0].mean > 10 * flicker[1].mean
    assert flicker[0].prompts == flicker[1].prompts == 6
    gap = results.differences["listed"]["undone_flicker"]
    assert gap.mean == pytest.approx(flicker[1].mean - flicker[0].mean)
    assert gap.low <= gap.high < 0
    metric = next(one for one in results.metrics if one.name == "undone_flicker")
    assert results.better("listed", metric) is True
    assert "listed" in (tmp_path / "out" / "report.md").read_text()
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["item"] for one in values["videos"]] == ["a bird", "a cat", "a dog", "a fox", "a hen", "an ox"]
    assert not any("are needed before" in note for note in results.notes)
    assert {one["why"] for one in values["excluded"]} >= {"nothing moves"}


def test_two_runs_give_the_same_bytes_and_a_killed_one_is_continued(
    models: list[Path], folders: list[Path], tmp_path: Path
) -> None:
    plan = plan_of(model(models[1]), prompts=PROMPTS, num_frames=9, seeds=2)
    assert len(plan.units) == 4  # of each seed two prompts, and one
    for name in ("one", "other"):
        run(plan, tmp_path / name)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "other")

    child = os.fork()
    if child == 0:
        evaluate(plan, tmp_path / "killed", on_unit=lambda done: done == 2 and os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kept = [record_path(tmp_path / "killed", unit) for unit in plan.units[:2]]
    before = [path.stat().st_mtime_ns for path in kept]
    assert not record_path(tmp_path / "killed", plan.units[2]).exists()
    seen: list[int] = []
    run(plan, tmp_path / "killed", on_unit=seen.append)
    assert seen == [2, 3, 4]
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "one")

    other = plan_of(model(models[1]), prompts=PROMPTS[:2], num_frames=9)
    with pytest.raises(ConfigError, match="holds another evaluation"):
        evaluate(other, tmp_path / "killed")
    assert len(run(other, tmp_path / "killed", overwrite=True).plan.items) == 2


def test_two_processes_give_what_one_gives(folders: list[Path], tmp_path: Path) -> None:
    plan = plan_of(*(folder_subject(one, one.name) for one in folders))
    run(plan, tmp_path / "one")
    run(plan, tmp_path / "two", processes=2)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_seeds_are_told_apart_and_taken_together(models: list[Path], tmp_path: Path) -> None:
    """The interval is over prompts, each the mean of its seeds; a prompt's own seed is that of its first video."""
    results = run(plan_of(model(models[0]), prompts=PROMPTS, num_frames=9, seeds=2), tmp_path / "out")
    assert [item.seed % 2**20 for item in results.plan.items] == [0, 5, 9] * 2
    assert len({item.seed for item in results.plan.items}) == 6
    found = results.means["SS"]["brightness"]
    assert found.prompts == 3
    assert found.mean == pytest.approx(np.mean(results.by_seed["SS"]["brightness"]))
    assert len(set(results.by_seed["SS"]["brightness"])) == 2


def test_what_cannot_be_measured_is_named(folders: list[Path], tmp_path: Path) -> None:
    named, listed = folders
    write_video(named / "a fish-0.mp4", clip(4, frames=1))
    (named / "a frog-0.mp4").write_bytes(b"no video at all")
    write_video(listed / "3.gif", clip(5, frames=7, side=24))
    with (listed / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps({"file": "3.gif", "prompt": "a fish"}) + "\n")
    results = run(plan_of(*(folder_subject(one, one.name) for one in folders)), tmp_path / "out")
    told = {(one.subject, one.item, one.metric): one.why for one in results.excluded}
    assert told["named", "a fish", "motion"] == "1 video frame; it takes 2"
    assert "cannot be read" in told["named", "a frog", ""]
    assert told["listed", "a frog", ""] == "no video of this prompt and seed"
    assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()
    assert results.differences["listed"]["motion"].prompts == 3
    assert any("differ in length, size or rate" in note for note in results.notes)
    groups = results.left_out
    assert [(one.subject, one.metrics, one.count, one.first) for one in groups[:2]] == [
        ("named", (), 1, "a frog"),
        ("listed", (), 1, "a frog"),
    ]
    # What the same videos lack for the same reason is said once.
    assert ("named", "1 video frame; it takes 2", 1) in {(one.subject, one.why, one.count) for one in groups}
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert text.index("cannot be read") < text.index("nothing moves")
        assert "no video of this prompt and seed" in text
    assert sum(one.count * max(len(one.metrics), 1) for one in groups) == len(results.excluded)


def test_reasons_that_differ_in_names_only_are_one() -> None:
    excluded = [
        Exclusion("mine", f"prompt {number}", 0, metric, why.format(number))
        for number in range(3)
        for metric, why in (("loops", "too short"), ("motion", "too short"), ("", "'{}.mp4' holds no video frames."))
    ]
    whole, short = grouped(excluded, ["mine"])
    assert (whole.metrics, whole.count, whole.why) == ((), 3, "'0.mp4' holds no video frames.")
    assert whole.line == "mine: the whole video, 3 videos, such as 'prompt 0': '0.mp4' holds no video frames."
    assert (short.metrics, short.count, short.why) == (("loops", "motion"), 3, "too short")
    (one,) = grouped([Exclusion("mine", "a\x1b[2J\n", 1, f"m@{n}", "none") for n in range(9)], ["mine"])
    assert one.line == "mine: m@0, m@1, m@2, m@3, m@4, m@5 and 3 more, 1 video, such as 'a [2J ': none"


def test_a_subject_without_any_value_is_explained(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a frog-0.mp4").write_bytes(b"no video at all")
    results = run(plan_of(folder_subject(tmp_path / "mine", "mine")), tmp_path / "out")
    note = results.notes[0]
    assert note.startswith("Nothing of 'mine' could be evaluated: the file cannot be read: ")
    assert note.endswith(" (1 video).")
    for name in ("report.html", "report.md", "results.json"):
        assert "could be evaluated: the file cannot be read" in (tmp_path / "out" / name).read_text()


def test_pixels_that_are_no_numbers_are_named(models: list[Path], tmp_path: Path, monkeypatch) -> None:
    from arl2.shapes.codec import GroupCodec

    whole = GroupCodec.decode

    def broken(self, latents, cache=None):
        video = whole(self, latents, cache)
        video[1, :, -1] = torch.nan
        return video

    monkeypatch.setattr(GroupCodec, "decode", broken)
    results = run(plan_of(model(models[0]), prompts=PROMPTS[:2], num_frames=9), tmp_path / "out")
    assert [(one.item, one.why) for one in results.excluded if not one.metric] == [
        (PROMPTS[1][0], "pixels that are NaN or infinite")
    ]
    assert results.means["SS"]["brightness"].prompts == 1
    assert results.means["SS"]["brightness"].low is None


def test_folders_and_subjects_that_cannot_be(folders: list[Path], models: list[Path], tmp_path: Path) -> None:
    named = folder_subject(folders[0], "named")
    with pytest.raises(ConfigError, match="There is no folder"):
        folder_subject(tmp_path / "none", "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no videos"):
        folder_subject(tmp_path / "empty", "empty")
    (folders[1] / "manifest.jsonl").write_text('{"file": "../named/a.mp4", "prompt": "a"}\n')
    with pytest.raises(ConfigError, match="line 1: each line needs a file of this folder"):
        folder_subject(folders[1], "listed")
    (folders[1] / "manifest.jsonl").write_text('{"file": "9.mp4", "prompt": "a"}\n')
    with pytest.raises(ConfigError, match=r"there is no '9.mp4'"):
        folder_subject(folders[1], "listed")
    with pytest.raises(ConfigError, match="given twice"):
        plan_of(named, named)
    with pytest.raises(ConfigError, match="has no video of the prompts that are evaluated"):
        plan_of(named, prompts=(("a whale", None),))
    with pytest.raises(ConfigError, match=r"The prompt 'a cat' is given twice; use --seeds"):
        plan_of(named, prompts=(("a cat", None), ("a cat", 3)))
    teacher = model(models[0])
    with pytest.raises(ConfigError, match="evaluates models; 'named' is a folder"):
        plan_of(named, suite="teacher", teacher=teacher)
    with pytest.raises(ConfigError, match="give --teacher MODEL"):
        plan_of(teacher, suite="teacher")
    with pytest.raises(ConfigError, match="leave it out"):
        plan_of(named, teacher=teacher)
    with pytest.raises(ConfigError, match="knows no truth"):
        plan_of(Subject("truth", "truth", "truth"))


def test_a_teacher_is_at_no_distance_from_itself_and_a_student_at_some(models: list[Path], tmp_path: Path) -> None:
    teacher = model(models[0])
    options = {"suite": "teacher", "teacher": replace(teacher, label="teacher"), "prompts": PROMPTS, "num_frames": 33}
    results = run(plan_of(teacher, model(models[1]), batch=3, **options), tmp_path / "out")
    own, student = results.means["SS"], results.means["SH"]
    assert set(own) == set(student) >= {"latents", "block_latents@0", "block_latents@2", "after_teacher@2"}
    assert all(value.mean == 0 for value in own.values())
    assert all(value.mean > 1e-3 for value in student.values())
    assert student["after_teacher@0"] == student["block_latents@0"]
    assert [x for x, _ in results.curve("SH", "block_pixels")] == [0, 1, 2]
    assert "Curves" in (tmp_path / "out" / "report.html").read_text()


def test_intervals_of_means() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = estimate(values.tolist())
    assert found.mean == pytest.approx(values.mean())
    # The normal interval of the same data; a bootstrap of 2000 resamples is within a tenth of it.
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert estimate(values.tolist()) == found
    assert (estimate([1.0]).low, estimate([1.0]).high) == (None, None)
    certain = estimate([1.0] * 20, is_share=True)
    assert certain.high == 1
    assert certain.low == pytest.approx(0.8389, abs=1e-3)  # Wilson, 20 of 20
    assert estimate([2.0] * 20).low == 2


def test_an_interval_that_ends_at_0_ends_there():
    """Thirds, as means of three seeds are: of these the upper end was 2e-18, and could have been as little below 0."""
    found = estimate([-1 / 3] * 5 + [1 / 3] + [0.0] * 24)
    assert found.high == 0
    assert not found.is_clear


FAKE = """
import json, os

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        assert full_info_dir.endswith("VBench_full_info.json")
        self.output_path = output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, mode="vbench_standard", **others):
        assert mode == "custom_input"
        names = sorted(os.listdir(videos_path))
        paths = [os.path.join(videos_path, one) for one in names]
        each = [{"video_path": path, "video_results": 0.25 * number} for number, path in enumerate(paths)]
        moving = [{**one, "video_results": True} for one in each]
        results = {one: [0.5, moving if one == "dynamic_degree" else each] for one in dimension_list[:-1]}
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as file:
            json.dump(results, file)
"""


def test_vbench_is_called_and_read_as_its_package_is(folders: list[Path], tmp_path: Path, monkeypatch) -> None:
    """By a stand-in: the package and its weights are gigabytes."""
    subject = folder_subject(folders[1], "listed")
    with pytest.raises(ConfigError, match="needs VBench's package"):
        plan_of(subject, suite="vbench")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "vbench.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    results = run(plan_of(subject, suite="vbench", batch=3), tmp_path / "out")
    assert results.means["listed"]["subject_consistency"].mean == pytest.approx(0.25)  # 0, 0.25, 0.5
    assert results.means["listed"]["dynamic_degree"].mean == 1
    assert {one.why for one in results.excluded} == {"VBench gave no value"}
    (tmp_path / "packages" / "vbench.py").write_text(
        FAKE.replace('assert mode == "custom_input"', "raise OSError('no weights')")
    )
    monkeypatch.delitem(sys.modules, "vbench")
    importlib.invalidate_caches()
    with pytest.raises(Arl2Error, match=r"VBench could not evaluate the videos \(OSError: no weights\)"):
        run(plan_of(subject, suite="vbench", batch=3), tmp_path / "other")
