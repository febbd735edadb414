"""What is read of folders of videos, how they become pairs, and what an evaluation that is resumed must notice."""

import importlib
import json
import os
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from arl2.errors import ConfigError
from arl2.evaluation.report.page import html_page
from arl2.evaluation.suites.bootstrap import FEWEST, estimate, estimate_difference
from arl2.evaluation.suites.evaluate import evaluate
from arl2.evaluation.suites.folder import folder_subject
from arl2.evaluation.suites.plan import Plan, make_plan
from arl2.evaluation.suites.registry import open_suite
from arl2.evaluation.suites.suite import Measured, Subject, SuiteOptions
from arl2.evaluation.suites.summary import results_of
from arl2.shapes.evaluation.suites.prompted import captions
from arl2.video.writers import open_video
from pipeline.stand_in import stand_in_pipeline


def write_video(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_video(path) as writer:
        writer.write(np.full((3, 16, 16, 3), shade, np.uint8))


def listed(folder: Path, *videos: tuple[str, str, int | None]) -> Subject:
    """A folder of GIFs: file, prompt and seed of each."""
    lines = []
    for file, prompt, seed in videos:
        write_video(folder / file)
        lines.append(json.dumps({"file": file, "prompt": prompt} | ({} if seed is None else {"seed": seed})) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder_subject(folder, folder.name)


def plan_of(*subjects: Subject, suite: str = "video", **options) -> Plan:
    return make_plan(open_suite(suite), subjects, SuiteOptions(**options), batch=4)


def names(subject: Subject) -> list[str]:
    return [video.path.name for video in subject.videos]


def test_a_picture_among_videos_is_noted_and_does_not_make_them_one(tmp_path: Path) -> None:
    for name in ("a cat-0.gif", "a dog-0.gif"):
        write_video(tmp_path / name)
    Image.new("RGB", (16, 16)).save(tmp_path / "compare.png")
    (tmp_path / "film.m4v").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("mine")
    write_video(tmp_path / "more" / "deep" / "c.gif")
    found = folder_subject(tmp_path, "mine")
    assert names(found) == ["a cat-0.gif", "a dog-0.gif"]
    (note,) = plan_of(found).notes
    assert "3 of the files and folders in 'mine' are no videos" in note
    assert "'compare.png'" in note


def test_pngs_alone_are_one_video(tmp_path: Path) -> None:
    write_video(tmp_path / "frames")  # a folder of PNGs
    found = folder_subject(tmp_path / "frames", "frames")
    assert names(found) == ["frames"]
    assert found.notes == ()


def test_videos_that_a_manifest_does_not_list_are_noted(tmp_path: Path) -> None:
    listed(tmp_path / "one", ("a.gif", "a cat", 1))
    write_video(tmp_path / "one" / "b.gif")
    found = folder_subject(tmp_path / "one", "one")
    assert names(found) == ["a.gif"]
    assert found.notes == ("1 of the files and folders in 'one' is not in its manifest.jsonl and not evaluated, "
                           "first 'b.gif'.",)  # fmt: skip


def test_videos_of_one_seed_are_pairs_whatever_their_rank(tmp_path: Path) -> None:
    one = listed(tmp_path / "one", ("a.gif", "a cat", 7), ("b.gif", "a cat", 3))
    other = listed(tmp_path / "other", ("x.gif", "a cat", 7))
    plan = plan_of(one, other)
    places = {video.path.name: video.replicate for subject in plan.subjects for video in subject.videos}
    assert places["a.gif"] == places["x.gif"] != places["b.gif"]
    assert [item.seed for item in plan.items] == [3, 7]
    assert [(number, item.seed) for number, item, _ in plan.missing] == [(1, 3)]
    assert plan.has_seeds


def test_numbers_of_samples_pair_and_are_no_seeds(tmp_path: Path) -> None:
    for name in ("one/a cat-0.gif", "one/a cat-2.gif", "other/a cat-2.gif"):
        write_video(tmp_path / name)
    plan = plan_of(*(folder_subject(tmp_path / name, name) for name in ("one", "other")))
    assert [(number, item.replicate) for number, item, _ in plan.missing] == [(1, 0)]
    assert not plan.has_seeds
    results = results_of(plan, [[Measured({"motion": 1.0}) for _ in unit.items] for unit in plan.units], [None, None])
    assert {video["seed"] for video in results.to_mapping()["videos"]} == {None}
    assert "seed 0" not in html_page(results)


def test_videos_without_seeds_are_paired_in_their_order_and_that_is_said(tmp_path: Path) -> None:
    one = listed(tmp_path / "one", ("a.gif", "a cat", 7), ("b.gif", "a cat", None))
    other = listed(tmp_path / "other", ("x.gif", "a cat", 7), ("y.gif", "a cat", 9))
    plan = plan_of(one, other)
    assert not plan.missing
    assert any("paired in their order" in note for note in plan.notes)


def test_models_get_the_seeds_of_the_folders(tmp_path: Path) -> None:
    folder = listed(tmp_path / "one", ("a.gif", "a red circle", 41), ("b.gif", "a blue square", 6))
    plan = plan_of(folder, Subject("shapes", "model", "shapes"))
    assert [item.seed for unit in plan.units if unit.subject == 1 for item in unit.items] == [41, 6]


def seeds_of_models(plan: Plan) -> list[int]:
    return [item.seed for unit in plan.units if plan.subjects[unit.subject].kind == "model" for item in unit.items]


SHAPES = Subject("shapes", "model", "shapes")


def test_models_get_the_seeds_of_the_folders_for_prompts_of_a_file_too(tmp_path: Path) -> None:
    videos = ("a.gif", "a red circle", 41), ("b.gif", "a blue square", 6), ("c.gif", "a red circle", 50)
    folder = listed(tmp_path / "one", *videos, ("d.gif", "a cyan ball", None))  # whose prompt is not evaluated
    prompts = (("a blue square", None), ("a red circle", None), ("a white square", None))
    plan = plan_of(folder, SHAPES, prompts=prompts)
    assert seeds_of_models(plan) == [6, 41, 2]
    assert plan.has_seeds
    assert plan.notes == ("2 videos of 'one' are of other prompts or seeds and not evaluated, first 'c.gif'.",)
    plan = plan_of(folder, SHAPES, prompts=prompts[1:2], seeds=2)
    assert seeds_of_models(plan) == [41, 50]
    assert not plan.missing


def test_a_seed_of_the_prompts_file_is_paired_with_the_video_that_has_it(tmp_path: Path) -> None:
    folder = listed(tmp_path / "one", ("a.gif", "a red circle", 3), ("b.gif", "a red circle", 7), ("c.gif", "a cat", 1))
    plan = plan_of(folder, SHAPES, prompts=(("a red circle", 7), ("a cat", 2)))
    assert seeds_of_models(plan) == [7, 2]
    assert [unit.videos[0].path.name for unit in plan.units if unit.videos] == ["b.gif"]
    assert [(number, item.prompt) for number, item, _ in plan.missing] == [(0, "a cat")]
    with pytest.raises(ConfigError, match="of 'a cat' seed 2 is wanted, and it has such as seed 1"):
        plan_of(folder, SHAPES, prompts=(("a cat", 2),))


@pytest.mark.parametrize("given", [(), (("a red circle", None),), (("a red circle", 5),)])
def test_where_a_folder_says_no_seeds_that_is_said_and_none_is_shown(given, tmp_path: Path) -> None:
    for name in ("a red circle-0.gif", "a blue square-0.gif"):
        write_video(tmp_path / "named" / name)
    plan = plan_of(folder_subject(tmp_path / "named", "named"), SHAPES, prompts=given)
    assert not plan.has_seeds
    (note,) = (note for note in plan.notes if "Not all videos of the folders have a seed of their own" in note)
    assert ("the seeds of the prompts file, else" in note) == (given == (("a red circle", 5),))
    records = [[Measured({"motion": 1.0}) for _ in unit.items] for unit in plan.units]
    results = results_of(plan, records, [None, "0" * 64])
    assert {video["seed"] for video in results.to_mapping()["videos"]} == {None}
    assert "<small>seed" not in html_page(results)
    assert "<small>sample 0" in html_page(results)


def test_a_name_that_is_no_text_is_refused_before_the_work(tmp_path: Path) -> None:
    write_video(tmp_path / "a.gif")
    try:
        (tmp_path / "a.gif").rename(tmp_path / os.fsdecode(b"a \xff-0.gif"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    with pytest.raises(ConfigError, match="is not UTF-8; rename the file") as refused:
        folder_subject(tmp_path, "mine")
    str(refused.value).encode()
    (tmp_path / "manifest.jsonl").write_text('{"file": "a.gif", "prompt": "\\ud800"}\n')
    with pytest.raises(ConfigError, match=r"line 1: this is not JSON"):
        folder_subject(tmp_path, "mine")


def test_a_folder_may_be_moved_and_the_evaluation_resumed(tmp_path: Path) -> None:
    listed(tmp_path / "here" / "mine", ("a.gif", "a cat", 7))
    shutil.copytree(tmp_path / "here" / "mine", tmp_path / "there" / "mine")
    first, second = (plan_of(folder_subject(tmp_path / name / "mine", "mine")) for name in ("here", "there"))
    assert first.fingerprint == second.fingerprint
    write_video(tmp_path / "there" / "mine" / "a.gif", shade=91)
    assert plan_of(folder_subject(tmp_path / "there" / "mine", "mine")).fingerprint != first.fingerprint


@pytest.mark.parametrize("part", ["transformer", "text/text_encoder"])
def test_a_finished_evaluation_is_not_taken_for_that_of_other_weights(tmp_path: Path, part: str) -> None:
    place = tmp_path / "model"
    stand_in_pipeline("SS").save_pretrained(place)
    shutil.copytree(place, tmp_path / "copy")

    def plan(where: Path, *, teacher: bool = False) -> Plan:
        subject = Subject("mine", "model", str(where))
        prompts = (("a red circle moves right", None),)
        if teacher:
            return plan_of(Subject("s", "model", "shapes"), suite="teacher", teacher=subject, prompts=prompts)
        return plan_of(subject, prompts=prompts, num_frames=9)

    before = plan(place), plan(place, teacher=True)
    assert plan(tmp_path / "copy").fingerprint == before[0].fingerprint
    if part == "transformer":  # of the other part the fingerprint is enough
        evaluate(before[0], tmp_path / "out")
    (file,) = (place / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name, tensor in sorted(tensors.items()) if tensor.is_floating_point())
    save_file({**tensors, name: tensors[name] + torch.full_like(tensors[name], 0.5)}, file)
    assert plan(place).fingerprint != before[0].fingerprint
    assert plan(place, teacher=True).fingerprint != before[1].fingerprint
    if part == "transformer":
        with pytest.raises(ConfigError, match="holds another evaluation, or one of other models"):
            evaluate(plan(place), tmp_path / "out")


def test_chance_is_called_better_as_seldom_as_it_says() -> None:
    """Differences of pure noise: 5 % may leave 0 out; three standard errors of 1000 trials are 2 % more."""
    random = np.random.default_rng(3)
    for prompts, trials, bound in ((FEWEST, 1000, 0.07), (8, 1000, 0.07), (20, 1000, 0.07), (40, 300, 0.10)):
        clear = sum(estimate(random.normal(size=prompts).tolist()).is_clear for _ in range(trials))
        assert clear / trials < bound, prompts
    for prompts in range(1, FEWEST):
        assert not estimate([1.0 + 0.001 * number for number in range(prompts)]).is_clear
    assert estimate([1.0 + 0.001 * number for number in range(FEWEST)]).is_clear


def test_an_evaluation_by_other_definitions_is_not_continued(tmp_path: Path) -> None:
    plan = plan_of(listed(tmp_path / "mine", ("a.gif", "a cat", 7)))
    evaluate(replace(plan, revision=0), tmp_path / "out")
    with pytest.raises(ConfigError, match="or by an arl2 with other metrics"):
        evaluate(plan, tmp_path / "out")


@pytest.mark.parametrize(("hits", "of"), [(3, 10), (0, 60), (1, 60), (30, 60), (60, 60), (7, 200)])
def test_shares_have_wilsons_interval(hits: int, of: int) -> None:
    """By its definition: shares from which what was found is 1.96 standard errors, of these shares, away."""
    found = estimate([1.0] * hits + [0.0] * (of - hits), is_share=True)
    for end in (found.low, found.high):
        if end not in (0, 1):
            assert abs(hits / of - end) == pytest.approx(1.959964 * (end * (1 - end) / of) ** 0.5, abs=1e-9)
    assert (found.low == 0) == (hits == 0)
    assert (found.high == 1) == (hits == of)
    if (hits, of) == (3, 10):
        assert (found.low, found.high) == pytest.approx((0.1078, 0.6032), abs=1e-4)


@pytest.mark.parametrize("prompts", [8, 29, 30, 60, 200])
@pytest.mark.parametrize("is_difference", [False, True])
def test_an_interval_grows_with_the_hits(prompts: int, is_difference: bool) -> None:
    how = estimate_difference if is_difference else estimate
    found = [how([1.0] * hits + [0.0] * (prompts - hits), is_share=True) for hits in range(prompts + 1)]
    assert all(one.low <= one.mean <= one.high for one in found)
    assert all(a.low <= b.low and a.high <= b.high for a, b in pairwise(found))
    assert not any(one.is_clear for one in found[:3]) or not is_difference


def test_shares_of_several_seeds_continue_those_of_one() -> None:
    """A third more is a little more; seeds that say the same are worth one, seeds that do not are worth more."""
    found = [estimate([1.0] * (n // 3) + [n % 3 / 3] + [0.0] * (59 - n // 3), is_share=True) for n in range(9)]
    assert all(a.low <= b.low and a.high <= b.high + 0.005 for a, b in pairwise(found))
    same, apart = estimate([1.0, 0.0] * 30, is_share=True), estimate([1 / 3, 2 / 3] * 30, is_share=True)
    assert apart.high - apart.low < 0.6 * (same.high - same.low)


def test_intervals_of_shares_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(7)
    for prompts, seeds, share in ((60, 1, 0.02), (60, 3, 0.02), (40, 3, 0.5), (12, 3, 0.9)):
        trials = random.binomial(seeds, random.beta(2 * share, 2 - 2 * share, (1000, prompts))) / seeds
        found = [estimate(one.tolist(), is_share=True) for one in trials]
        assert sum(one.low <= share <= one.high for one in found) / 1000 > 0.92, (prompts, seeds, share)


def test_differences_of_shares_that_agree_are_no_certainty() -> None:
    none = estimate_difference([0.0] * 60, is_share=True)
    # Bonett and Price's (2012): two discordant pairs more in 62.
    assert (none.low, none.high) == pytest.approx((-0.044707, 0.044707), abs=1e-6)
    every = estimate_difference([1.0] * 60, is_share=True)
    assert 0.9 < every.low < 0.91
    assert every.high == 1
    # McNemar's exact test says 0.0625 of 5 to 0 and 0.031 of 6 to 0.
    assert not estimate_difference([1.0] * 5 + [0.0] * 55, is_share=True).is_clear
    assert estimate_difference([1.0] * 6 + [0.0] * 54, is_share=True).is_clear
    thirds = estimate_difference([1 / 3] * 60, is_share=True)
    assert thirds.low < thirds.mean < thirds.high
    numbers = [0.1 * number for number in range(40)]
    assert estimate_difference(numbers) == estimate(numbers)
    assert estimate_difference([0.0] * 60).high == 0  # of numbers nothing else is known
    random = np.random.default_rng(8)
    for prompts, bound in ((FEWEST, 0.05), (20, 0.06), (60, 0.07)):
        trials = random.binomial(1, 0.5, (1000, prompts)) - random.binomial(1, 0.5, (1000, prompts))
        clear = sum(estimate_difference(one.tolist(), is_share=True).is_clear for one in trials)
        assert clear / 1000 < bound, prompts


def test_installed_prompts_are_distinct_and_any_number_is_given() -> None:
    assert len(set(captions(200, seed=0))) == 200
    assert captions(50, seed=0) == captions(200, seed=0)[:50]


def test_prompts_and_lengths_are_checked_before_the_work(tmp_path: Path) -> None:
    model = Subject("shapes", "model", "shapes")
    with pytest.raises(ConfigError, match="The prompt 'xyzzy' cannot be evaluated"):
        plan_of(model, suite="shapes", prompts=(("a red circle", None), ("xyzzy", None)))
    with pytest.raises(ConfigError, match="Got 3 video frames; the evaluator takes 5"):
        plan_of(model, suite="shapes", num_frames=3)
    folder = listed(tmp_path / "one", ("a.gif", "a red circle", 1), ("b.gif", "xyzzy", 2))
    plan = plan_of(folder, Subject("true", "truth", "true"), suite="shapes")
    assert [(number, item.prompt) for number, item, _ in plan.missing] == [(1, "xyzzy")]


LOOKS = """
import json, os

seen = {}

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.output_path = output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(self, videos_path, name, dimension_list, mode):
        for one in os.listdir(videos_path):
            with open(os.path.join(videos_path, one), "rb") as file:
                seen[one] = file.read()
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as file:
            json.dump({}, file)
"""


def test_vbench_gets_the_files_of_a_folder_themselves(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "vbench.py").write_text(LOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vbench", raising=False)
    importlib.invalidate_caches()
    for name in ("mine/a cat-0.mp4", "mine/a dog-0.gif", "mine/a fox-0.webp"):
        write_video(tmp_path / name)
    subject = folder_subject(tmp_path / "mine", "mine")
    try:
        evaluate(plan_of(subject, suite="vbench"), tmp_path / "out")
        seen = importlib.import_module("vbench").seen
    finally:
        sys.modules.pop("vbench", None)  # the next test has none
    assert len(seen) == 3
    assert seen["00000.mp4"] == (tmp_path / "mine" / "a cat-0.mp4").read_bytes()
    assert seen["00001.gif"] == (tmp_path / "mine" / "a dog-0.gif").read_bytes()
    assert "00002.mp4" in seen  # VBench reads no webp
