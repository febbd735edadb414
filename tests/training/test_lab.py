"""The laboratory's driver: a tiny budget from end to end, what it refuses, and its table."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.training.conversion import FRAMES, RandomClips, teacher_folder

from arl2.cli.app import parse
from arl2.errors import ConfigError
from arl2.shapes.evaluation.score import score_truth
from arl2.shapes.evaluator.scoring import Share
from arl2.training.conversion.batches import TrainingClips
from arl2.training.conversion.students import load_teacher
from measured import Measurements

ROOT = Path(__file__).parents[2]
LAB = ROOT / "recipes" / "lab"


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_driver", LAB / "lab.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["lab_driver"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def a_lab(driver: ModuleType, folder: Path, **row):
    loop = {"steps": 2, "warmup_steps": 1, "checkpoint_every": 1, "evaluate_every": 100, "log_every": 1}
    stage = {
        "loop": loop,
        "teacher": str(teacher_folder(folder / "teacher")),
        "frames": [FRAMES],
        "batch_frames": 2 * FRAMES,
        "held_out": 2,
        "picture_frames": 6,
    }
    small = {"state_rank": 2, "ffn_rank": 2, "evaluation_rollouts": 1}
    values = {
        "seeds": [1, 2],
        "align": stage,
        "distill": {**stage, **small},
        "measures": {"prompts": 0, "hidden": [], "video_frames": 33},
        "row": [{"name": "tiny", "plan": "WS", "window": 6, "own_block_share": 0.5, **row}],
    }
    return driver.record_from_mapping(driver.Lab, values, where="rows")


def clips_for(lab) -> TrainingClips:
    model = load_teacher(lab.align["teacher"], device="meta").model
    return TrainingClips([RandomClips()], held_out=2, model=model, device=torch.device("cpu"))


def test_a_tiny_row_is_trained_once_per_seed_resumed_and_shown(driver, tmp_path):
    lab = a_lab(driver, tmp_path, state_form={"rotation": "spatial"})
    out, (row,), kept = tmp_path / "lab", lab.row, Measurements(tmp_path / "lab" / "measured")
    assert driver.result_of(lab, row, lab.seeds, out, kept) is None
    steps = []
    for seed in (*lab.seeds, 1):
        first, second = driver.train_row(lab, row, seed, out / row.name / f"seed-{seed}", clips=clips_for(lab))
        assert first.reason == second.reason == "finished"
        driver.measure_row(lab, row, seed, out / row.name / f"seed-{seed}", kept)
        steps.append(second.step)
    assert steps == [2, 2, 2]
    text = driver.write_table(lab, out, kept)
    saved = json.loads((out / "table.json").read_text())
    assert saved["missing"] == []
    (found,) = saved["rows"]
    assert found["seeds"] == [1, 2]
    assert set(found["errors"]) == {"flow error", "hidden", "rollout"}
    each = found["errors"]["flow error"]["each"]
    assert min(each) == found["errors"]["flow error"]["lowest"] < found["errors"]["flow error"]["highest"] == max(each)
    assert found["errors"]["hidden"]["mean"] > found["errors"]["flow error"]["mean"]
    assert found["memory_bytes"] > 0
    header, _, line = text.splitlines()
    assert header == "| row | plan | seeds | flow error | hidden | rollout | memory, kB | minutes |"
    assert (saved["chosen"], saved["equal"]) == (None, [])  # nothing was measured that the rule asks for
    assert found["parameters"] > 0
    assert line.startswith("| tiny | WS | 2 | ")
    assert (out / "table.md").read_text() == text


def test_the_table_refuses_runs_of_other_settings_and_says_nothing_of_other_clips(driver, tmp_path):
    lab = a_lab(driver, tmp_path)
    (row,), out = lab.row, tmp_path / "lab"
    kept = Measurements(out / "measured")
    driver.train_row(lab, row, 1, out / row.name / "seed-1", clips=clips_for(lab))
    driver.measure_row(lab, row, 1, out / row.name / "seed-1", kept)
    found = driver.result_of(lab, row, lab.seeds, out, kept)
    assert (found["seeds"], "flow error" in found["errors"]) == ([1], True)
    other = driver.replace(lab, distill={**lab.distill, "memory_weight": 5.0})
    with pytest.raises(ConfigError, match=r"made with other settings than row 'tiny' has now; delete it"):
        driver.result_of(other, row, lab.seeds, out, kept)
    longer = driver.replace(lab, distill={**lab.distill, "frames": [2 * FRAMES]})
    shorter = driver.replace(row, distill={"frames": [FRAMES]})
    assert driver.result_of(longer, shorter, lab.seeds, out, kept)["errors"] == {}


def test_rows_that_share_a_stage_1_train_it_once(driver, tmp_path):
    small = a_lab(driver, tmp_path)
    whole = {"name": "whole", "plan": "HH", "window": 6}
    rows = [driver.record_from_mapping(driver.Row, one, where="row") for one in (whole, {**whole, "name": "half"})]
    half = driver.replace(rows[1], plan="HS", aligned="whole")
    lab = driver.replace(small, row=(rows[0], half))
    folders = {row.name: tmp_path / "lab" / row.name / "seed-1" for row in lab.row}
    first, second = driver.train_row(lab, half, 1, folders["half"], clips=clips_for(lab))
    assert (first.step, second.step) == (2, 2)
    aligned = folders["whole"] / "align" / "metrics.jsonl"
    before = aligned.read_bytes()
    assert not (folders["half"] / "align").exists()
    driver.train_row(lab, rows[0], 1, folders["whole"], clips=clips_for(lab))
    assert aligned.read_bytes() == before
    kept = Measurements(tmp_path / "lab" / "measured")
    for row in lab.row:
        driver.measure_row(lab, row, 1, folders[row.name], kept)
    driver.write_table(lab, tmp_path / "lab", kept)
    found = json.loads((tmp_path / "lab" / "table.json").read_text())["rows"]
    assert [(one["row"], one["plan"]) for one in found] == [("whole", "HH"), ("half", "HS")]
    assert found[0]["minutes"] > 0 < found[1]["minutes"]


def test_shares_are_pooled_over_seeds_with_intervals(driver):
    results = [
        {
            "row": "a",
            "plan": "W",
            "seeds": [1, 2],
            "errors": {},
            "shares": {"all": {"share": 0.5, "low": 0.4, "high": 0.6, "counts": [[3, 10], [7, 10]]}},
            "memory_bytes": 2500,
            "minutes": 1.25,
        },
        {"row": "b", "plan": "teacher", "seeds": [1], "errors": {}, "shares": {}, "memory_bytes": 1, "minutes": 0.0},
    ]
    assert driver.table_of(results).splitlines()[2:] == [
        "| a | W | 2 | 50% (40% to 60%; 30, 70) | 2 | 1.2 |",
        "| b | teacher | 1 | - | 0 | 0.0 |",
    ]


def test_a_score_says_of_each_prompt_whether_it_is_right():
    score = score_truth(prompts=5, seed=3, num_frames=33)
    judged = [right for right in score.right if right is not None]
    assert len(score.right) == 5
    assert (sum(judged), len(judged)) == (score.shares["all"].hits, score.shares["all"].of)


def result(
    row: str, plan: str, window: int, right: dict[str, list[bool | None]], remembered: float = 0.5, **facts: int
) -> dict[str, Any]:
    judged = [one for each in right.values() for one in each if one is not None]
    shares = {
        "all": {"share": sum(judged) / len(judged), "low": 0.4, "high": 0.6},
        "24 hidden": {"share": 1.0, "low": 0.9, "high": 1.0},
        "48 hidden": {"share": remembered, "low": remembered - 0.1, "high": remembered + 0.1},
    }
    return {
        "row": row,
        "plan": plan,
        "window": window,
        "seeds": [1],
        "errors": {},
        "shares": shares,
        "right": right,
        "memory_bytes": 1000,
        "parameters": 10,
        "minutes": 1.0,
        **facts,
    }


def test_rows_are_compared_prompt_by_prompt_with_their_teacher_and_with_the_best(driver):
    """Where the same prompts are right the difference is next to nothing, however wide each share's own interval is."""
    half, other_half = [True, False] * 40, [False, True] * 40
    results = driver.with_differences(
        [
            result("teacher-9", "teacher", 9, {"1": half, "2": other_half}),
            result("teacher-6", "teacher", 6, {"1": [True] * 80}),
            result("same", "W", 9, {"1": half, "2": other_half}),
            result("worse", "W", 9, {"1": [False] * 16 + half[16:], "3": [False] * 80}),  # nobody measured seed 3
            result("little-worse", "W", 9, {"1": [False, *half[1:]]}),
            result("unsure", "W", 6, {"1": [False, *[True] * 19, *[False] * 20, *[None] * 40]}),
            result("alone", "W", 3, {"1": half}),
        ]
    )
    found = {one["row"]: one.get("against_teacher") for one in results}
    assert found["teacher-9"] is found["alone"] is None
    assert (found["same"]["mean"], found["same"]["prompts"]) == (0.0, 160)
    assert found["same"]["low"] == -found["same"]["high"] == pytest.approx(-0.017, abs=5e-4)  # as of 162 with one each
    assert found["worse"]["mean"] == pytest.approx(-8 / 80)
    assert (found["worse"]["high"] < 0, found["worse"]["prompts"]) == (True, 80)
    assert found["unsure"]["mean"] == pytest.approx(-21 / 40)
    assert found["unsure"]["prompts"] == 40
    # Significantly below the best row, `same`, or not; teachers are no candidates.
    assert {one["row"]: one.get("admitted") for one in results} == {
        "teacher-9": None,
        "teacher-6": None,
        "same": True,
        "worse": False,
        "little-worse": True,
        "unsure": True,
        "alone": True,
    }
    header, _, *lines = driver.table_of(results).splitlines()
    paired = "all, against teacher | all, against best | admitted"
    assert header == f"| row | plan | seeds | all | 24 hidden | 48 hidden | {paired} | memory, kB | minutes |"
    remembered = "100% (90% to 100%) | 50% (40% to 60%)"
    both = "+0.0 (-1.7 to +1.7) | +0.0 (-1.7 to +1.7) | yes"
    assert f"| same | W | 1 | 50% (40% to 60%) | {remembered} | {both} | 1 | 1.0 |" in lines
    assert f"| alone | W | 1 | 50% (40% to 60%) | {remembered} | - | +0.0 (-3.4 to +3.4) | yes | 1 | 1.0 |" in lines


def counted(row: str, counts: list[list[int]], plan: str = "W") -> dict[str, Any]:
    share = Share(sum(hits for hits, _ in counts), sum(of for _, of in counts))
    return {"row": row, "plan": plan, "shares": {"all": {**share.to_mapping(), "counts": counts}}}


def test_intervals_are_as_wide_as_the_seeds_differ(driver):
    as_chance_has_it = [counted(f"row-{n}", [[50 - n, 100], [50 + n, 100]]) for n in (0, 3, 5)]
    assert driver.spread_between_seeds(as_chance_has_it) == {"all": 1.0}
    assert [one["shares"] for one in driver.with_spread(as_chance_has_it)] == [
        one["shares"] for one in as_chance_has_it
    ]
    # Two of a row, 20 points from their mean: (20 / 5) ** 2 each, one degree of freedom.
    far = [counted("far", [[30, 100], [70, 100]]), counted("teacher", [[10, 100], [90, 100]], "teacher")]
    assert driver.spread_between_seeds(far)["all"] == pytest.approx(32)
    trained, teacher = driver.with_spread(far)
    assert teacher == far[1]  # nothing was trained
    few = Share(2, 4).interval
    assert trained["shares"]["all"]["low"] < few[0] + 0.1  # as of 200 / 32 clips
    assert trained["shares"]["all"]["high"] > few[1] - 0.1
    assert far[0]["shares"]["all"]["low"] > 0.4
    one_seed = [counted("alone", [[30, 100]]), counted("none", [[0, 10], [0, 10]])]
    assert driver.spread_between_seeds(one_seed) == {"all": 1.0}


def test_the_rule_chooses_what_remembers_and_draws(driver):
    good, bad = {"1": [True] * 40 + [False] * 40}, {"1": [True] * 10 + [False] * 70}
    rows = [
        result("teacher-9", "teacher", 9, good, 0.9),
        result("draws", "HS", 9, good, 0.1),
        result("remembers", "SH", 9, bad, 0.9),
        result("both", "WW", 9, good, 0.6, memory_bytes=2000),
        result("both-smaller", "GW", 9, good, 0.45),
        result("both-smaller-older", "WH", 9, good, 0.45),
        result("sees-it", "WW", 12, good, 0.9),
        result("both-smallest-but-more-trained", "WH", 9, good, 0.5, parameters=11),
    ]
    equal = ["both-smaller-older", "both-smaller", "both-smallest-but-more-trained", "both"]
    assert driver.chosen_by_rule(driver.with_differences(rows)) == equal
    assert driver.chosen_by_rule(driver.with_differences(rows[:2])) == ["draws"]
    assert driver.chosen_by_rule(driver.with_differences(rows[:1])) == []


def test_what_is_refused_before_anything_is_trained(driver, tmp_path, capsys):
    with pytest.raises(ConfigError, match="Row 'tiny' sets loop, which is of the budget that all rows share"):
        a_lab(driver, tmp_path, distill={"loop": {"steps": 5}})
    with pytest.raises(ConfigError, match="Row 'tiny' sets batch_frames, which is of the budget"):
        a_lab(driver, tmp_path, distill={"batch_frames": 3})
    with pytest.raises(ConfigError, match="There is no row 'others'"):
        a_lab(driver, tmp_path, aligned="others")
    for settings in ({"aligned": "tiny"}, {"aligned": "tiny", "align": {"level_share": 0.5}}):
        with pytest.raises(ConfigError, match="Row 'tiny' takes the stage 1 of 'tiny'"):
            a_lab(driver, tmp_path, **settings)
    with pytest.raises(ConfigError, match="own_blok_share"):
        a_lab(driver, tmp_path, own_blok_share=1.0)
    with pytest.raises(ConfigError, match=r"There is no row 'tinny'. Did you mean 'tiny'"):
        a_lab(driver, tmp_path).chosen(["tinny"])
    with pytest.raises(ConfigError, match="Rows need different names"):
        a_lab(driver, tmp_path, name="a b")
    assert driver.main([str(tmp_path / "none.toml"), "-o", str(tmp_path / "out")]) == 1
    assert "none.toml" in capsys.readouterr().err


def test_the_rows_of_the_repository_are_rows(driver):
    lab = driver.read_lab(LAB / "rows.toml")
    assert len(lab.row) >= 20
    assert {letter for row in lab.row for letter in row.plan} == set("SHWKGV")
    teachers = {row.window for row in lab.row if not row.plan}
    for row in lab.row:
        assert row.window in teachers  # what it is held against
        if row.plan:
            align, distill = driver.configs_of(lab, row, 2, Path("runs/lab") / row.name / "seed-2")
            assert align.loop.seed == distill.loop.seed == 2
            assert distill.student_window == row.window
            # One budget: frames in a batch, batches in a step, steps.
            assert align.batch_frames * align.loop.batches_per_step * align.loop.steps == 42 * 700
            assert distill.batch_frames * distill.loop.batches_per_step * distill.loop.steps == 54 * 500
            assert distill.memory_weight > 0  # without it no memory is learnt in so few steps


def test_the_commands_of_the_page_name_what_exists_and_make_what_the_rows_train_on(driver):
    text = (ROOT / "docs" / "lab.md").read_text()
    commands = [shlex.split(line, comments=True) for line in text.split("```sh\n")[1].split("```")[0].splitlines()]
    lab, made = driver.read_lab(LAB / "rows.toml"), []
    for program, *words in commands:
        if program == "arl2":
            asked = parse(words)
            made.append(str(asked.output))
            assert asked.scenes.real
        else:
            given = driver.arguments(words[1:])
            assert [program, words[0]] == ["python", "recipes/lab/lab.py"]
            assert (ROOT / given.rows_file).samefile(LAB / "rows.toml")
            lab.chosen(driver.names_in(given.rows))
    assert made == list(lab.align["clips"]) == list(lab.distill["clips"])
    rows = {row.name for row in lab.row}
    assert set(re.findall(r"`((?:teacher|windowed|published)-[\w-]+)`", text)) <= rows
