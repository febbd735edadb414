"""Timing, results and their comparison; the gate that keeps figures of a wrong computation to itself."""

import copy
import json
import re
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from arl2.attention.key_value_cache import KeyValueCache
from arl2.attention.recurrent_state import RecurrentState
from arl2.cli.main import main
from arl2.errors import ConfigError
from arl2.evaluation.bench import part as part_module
from arl2.evaluation.bench import rollout as rollout_module
from arl2.evaluation.bench.chart import Panel, draw_chart
from arl2.evaluation.bench.machine import ceilings, is_same_machine, machine_facts, new_bytes
from arl2.evaluation.bench.models import hybrid_plan
from arl2.evaluation.bench.options import RolloutOptions
from arl2.evaluation.bench.part import run_part
from arl2.evaluation.bench.result import Check, compare, read_result
from arl2.evaluation.bench.rollout import RolloutPart
from arl2.evaluation.bench.timing import Lap, Stopwatch, Timing
from arl2.kernels.delta_rule import chunked
from arl2.video.wan_codec import WanCodec

SMALL = ["--preset", "tiny", "--device", "cpu", "--threads", "1", "--repeats", "1"]
SHORT = [*SMALL, "--frames", "45"]


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own rates take seconds to measure; they have a test of their own."""
    monkeypatch.setattr(part_module, "ceilings", lambda *given: {"matrix_product_flops": 1e11, "copy_bytes": 1e10})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of ``rollout``, and its chart beside it. No test writes into the folder."""
    path = tmp_path_factory.mktemp("bench") / "rollout.json"
    assert main(["bench", "rollout", *SHORT, "-o", str(path), "--plot", str(path.with_suffix(".png"))]) == 0
    return path


def test_warm_up_is_not_timed_and_every_run_is_kept():
    calls: list[str] = []
    watch = Stopwatch("cpu")
    timing = watch.timing(lambda: calls.append("run"), repeats=4, warmup=2)
    assert len(calls) == 6
    assert len(timing.runs) == 4
    assert min(timing.runs) <= timing.median <= max(timing.runs)
    assert watch.what == "processor time of one thread"  # as tests run on one


def test_what_is_compared_runs_in_turns():
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    laps = list(Stopwatch("cpu").interleaved(runs, repeats=2))
    assert calls == ["a", "b"] * 3  # the first two are a warm-up
    assert [name for name, _ in laps] == ["a", "b", "a", "b"]


def test_only_the_clock_counts_what_a_process_waits_for():
    lap = Stopwatch("cpu").time(lambda: time.sleep(0.05))
    assert lap.clock >= 0.05 > 5 * lap.seconds


def test_median_and_spread():
    timing = Timing((Lap(3.0, 4.0), Lap(1.0, 1.5), Lap(2.0, 9.0)))
    assert timing.to_mapping() == {
        "median": 2.0,
        "smallest": 1.0,
        "largest": 3.0,
        "runs": [3.0, 1.0, 2.0],
        "clock_median": 4.0,
    }


def test_the_machine_and_its_ceilings():
    facts = machine_facts("cpu")
    assert json.loads(json.dumps(facts)) == facts
    assert is_same_machine(facts, facts | {"load": 99, "date": "another", "commit": "another", "threads": 7})
    assert not is_same_machine(facts, facts | {"processor": "another"})
    rates = ceilings(Stopwatch("cpu"), torch.float32, repeats=1)
    assert rates["matrix_product_flops"] > 1e8
    assert rates["copy_bytes"] > 1e7


def test_bytes_of_new_tensors():
    old = torch.zeros(10)
    with new_bytes("cpu") as taken:
        assert taken() == 0
        one = torch.zeros(1000, 7)
        view = one[3:]
        assert taken() == one.nbytes
        del one
        assert taken() == view.untyped_storage().nbytes() == 28_000
        del view
        assert taken() == 0
    assert old.sum() == 0


@pytest.mark.parametrize(
    ("layers", "share", "plan"), [(4, 0.75, "HHSH"), (8, 0.5, "HSHSHSHS"), (3, 1.0, "HHH"), (30, 22 / 30, None)]
)
def test_softmax_layers_are_spread_evenly(layers, share, plan):
    made = hybrid_plan(layers, share)
    assert plan is None or made == plan
    assert made.count("H") == round(share * layers)
    assert "SS" not in made


def test_a_result_says_what_was_measured_and_where(written):
    result = json.loads(written.read_text())
    assert result["complete"]
    assert result["passed"]
    assert result["settings"]["num_frames"] == 45
    assert result["machine"]["torch"] == torch.__version__
    assert {"commit", "date", "processor", "time"} <= result["machine"].keys()
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["softmax, full cache, after 33"]["block_seconds"]["median"] > 0
    assert all(len(row["read_seconds"]["runs"]) >= 1 for row in result["rows"] if "read_seconds" in row)
    with Image.open(written.with_suffix(".png")) as chart:
        assert chart.getcolors(1 << 20) is not None
        assert chart.width > 600


def test_json_is_one_line_and_nothing_else(capsys):
    assert main(["bench", "kernels", *SMALL, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["part"] == "kernels"


@pytest.mark.parametrize("part", ["rollout", "block", "kernels", "train"])
def test_a_wrong_kernel_gets_no_figures(part, monkeypatch, capsys, tmp_path):
    right = chunked._advance

    def wrong(*given):
        errors, state = right(*given)
        return errors, 1.001 * state

    monkeypatch.setattr(chunked, "_advance", wrong)
    path = tmp_path / "wrong.json"
    plot = ["--plot", str(tmp_path / "wrong.png")] if part == "rollout" else []  # the one that is drawn
    assert main(["bench", part, *SMALL, "-o", str(path), *plot]) == 1
    out = capsys.readouterr().out
    assert "OVER state update, naive twin" in out
    assert "speed-up" not in out
    assert "seconds" not in out
    result = json.loads(path.read_text())
    assert not result["passed"]
    assert result["rows"] == result["findings"] == []
    assert not (tmp_path / "wrong.png").exists()
    with pytest.raises(ConfigError, match="failed its correctness checks"):
        read_result(path)


def test_a_wrong_decoder_gets_no_figures(monkeypatch, capsys):
    right = WanCodec.decode
    monkeypatch.setattr(WanCodec, "decode", lambda *given: right(*given).mul(1.01))
    assert main(["bench", "decode", "--base-dim", "4", "--blocks", "1", *SMALL[2:]]) == 1
    out = capsys.readouterr().out
    assert "OVER decode against diffusers" in out
    assert "times" not in out.partition("OVER")[2]


def test_a_snapshot_that_loses_something_gets_no_figures(monkeypatch, capsys):
    right = RecurrentState.restore

    def wrong(self, tensors, facts, frames):
        right(self, tensors, facts, frames)
        self.state.mul_(1 + 1e-6)

    monkeypatch.setattr(RecurrentState, "restore", wrong)
    assert main(["bench", "snapshot", *SMALL]) == 1
    assert "OVER exact snapshot, what is remembered" in capsys.readouterr().out


def test_bytes_that_are_miscounted_get_no_figures(monkeypatch, capsys):
    right = KeyValueCache.nbytes
    monkeypatch.setattr(KeyValueCache, "nbytes", property(lambda self: right.fget(self) * 21 // 20))
    assert main(["bench", "rollout", *SHORT]) == 1
    out = capsys.readouterr().out
    assert "OVER memory of softmax, full cache: allocated against nbytes" in out
    assert "speed-up" not in out


def test_the_time_of_a_video_is_the_sum_over_its_blocks(monkeypatch):
    """With passes that take a second for every frame seen, it can be told by hand."""
    part = RolloutPart(RolloutOptions(preset="tiny", device="cpu", num_frames=93, repeats=1))
    assert (part.latent_frames, part.video_frames) == (24, 93)
    seen = [0]
    right = RolloutPart._filled

    def filled(self, baseline, past, point):
        seen.append(min(past, baseline.window - 3) if baseline.window else past if baseline.grows else 0)
        return right(self, baseline, past, point)

    monkeypatch.setattr(RolloutPart, "_filled", filled)
    monkeypatch.setattr(part.watch, "time", lambda run: (run(), Lap(seen[-1] + 3.0, 0.0))[1])
    result = run_part(part)
    rows = {row.name: row.values for row in result.rows}
    # Eight blocks of 4 + 1 passes, each of which takes its past and its own three frames.
    assert rows["softmax, full cache, whole video"]["video_seconds"] == pytest.approx(
        5 * sum(past + 3 for past in range(0, 24, 3))
    )
    assert rows["hybrid as published, whole video"]["last_block_seconds"] == 5 * 24
    assert rows["all hybrid, whole video"]["video_seconds"] == 5 * 8 * 3
    found = {finding.name: finding.value for finding in result.findings}
    assert found["all hybrid: speed-up over softmax, full cache, 93 video frames"] == pytest.approx(540 / 120)
    assert found["all hybrid: time of block 1,000 over block 20, fastest runs"] == 1


def test_what_does_not_fit_is_said_and_the_rest_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(rollout_module, "available_bytes", lambda device: 1_500_000)
    assert main(["bench", "rollout", *SHORT]) == 0
    out = capsys.readouterr().out
    assert "more than there is" in out
    assert "all hybrid, whole video" in out
    assert "speed-up over softmax, full cache" not in out


def test_ctrl_c_leaves_what_is_done(monkeypatch, tmp_path, capsys):
    right, calls = RolloutPart._measure, []

    def measure(self, baseline, past, point):
        calls.append(past)
        if len(calls) == 5:
            raise KeyboardInterrupt
        right(self, baseline, past, point)

    monkeypatch.setattr(RolloutPart, "_measure", measure)
    path = tmp_path / "part.json"
    assert main(["bench", "rollout", *SHORT, "-o", str(path)]) == 130
    result = json.loads(path.read_text())
    assert not result["complete"]
    assert [row["name"] for row in result["rows"]][:2] == [
        "softmax, full cache, after 0",
        "softmax, full cache, after 9",
    ]
    assert "Stopped by Ctrl-C" in result["notes"][0]
    assert "interrupted" in capsys.readouterr().err


def test_comparison_of_two_results(written, tmp_path, capsys):
    first = json.loads(written.read_text())
    second = copy.deepcopy(first)
    second["machine"]["threads"] = 2
    for row in second["rows"]:
        for value in row.values():
            if isinstance(value, dict):
                value.update({name: value[name] / 2 for name in ("median", "smallest", "largest")})
    other = tmp_path / "second.json"
    other.write_text(json.dumps(second))
    found = {(one.row, one.value): one for one in compare(first, second)}
    one = found["all hybrid, after 0", "block_seconds"]
    assert one.ratio == pytest.approx(0.5)
    assert one.low <= one.ratio <= one.high
    assert found["all hybrid, after 0", "memory_bytes"].ratio == 1
    assert main(["bench", "compare", str(written), str(other)]) == 0
    out = capsys.readouterr().out
    assert "0.500" in out
    assert "threads: 1 against 2" in out
    assert main(["bench", "compare", str(written), str(other), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["changed"] == {"threads": [1, 2]}
    assert len(facts["compared"]) == len(found)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda x: x.update(part="block"), "of 'rollout' and the second of 'block'; compare two of one part"),
        (lambda x: x["machine"].update(processor="Z80"), "different machines .* add --across-machines"),
        (lambda x: x.update(rows=[]), "no measurement in common"),
        (lambda x: x.update(format="other"), "is no result of arl2 bench"),
        (lambda x: x.update(version=99), "is of version 99, this arl2 reads 1"),
        (lambda x: x.update(rows=["x"]), "is damaged: a row"),
        (lambda x: x.update(machine=3), "is damaged: machine"),
        (lambda x: x.update(passed=False), "failed its correctness checks"),
    ],
)
def test_results_that_cannot_be_compared(written, tmp_path, capsys, harm, said):
    content = json.loads(written.read_text())
    harm(content)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    assert main(["bench", "compare", str(written), str(other)]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert len(error.splitlines()) == 1
    if "different machines" in said:
        assert main(["bench", "compare", str(written), str(other), "--across-machines"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rolout"], "Did you mean 'rollout'?"),
        (["rollout", "--height", "33"], "a multiple of 16 pixels; got 33, use 32"),
        (["rollout", "--layers", "0"], "give a whole number from 1"),
        (["rollout", "--layers", "1001"], "Got layers 1001; give a whole number from 1 to 1000"),
        (["rollout", "--layers", "1"], "With 1 layers a share of 0.75 makes 1 hybrid"),
        (["block", "--window", "2"], "Got window 2; give a whole number from 3"),
        (["rollout", "--window", "5"], "cannot hold 3 sink frames and a block of 3; use --window 6 or more"),
        (["rollout", "--window", "full"], "Got the whole past as the window; give a number of latent frames"),
        (["rollout", "--steps", "1000,500"], "Got the timesteps (1000, 500); give the number of denoising passes"),
        (["rollout", "--hybrid-share", "2"], "above 0 and at most 1; got 2"),
        (["rollout", "--preset", "large"], "got 'large'. Accepted: tiny, small, wan-1.3b, wan-14b."),
        (["rollout", "--device", "cuda:9"], "Device 'cuda:9' cannot be used here"),
        (["rollout", "-o", "result.txt"], "give a name that ends in .json"),
        (["rollout", "-o", "a.json", "--plot", "b.jpg"], "give a name that ends in .png"),
        (["decode", "--width", "65"], "a multiple of 8 pixels; got 65, use 64"),
        (["train", "--dtype", "fp16"], "got float16, give --dtype bf16"),
        (["train", "--layers", "1", "--hybrid-share", "0.3"], "makes none hybrid; give more"),
        (["compare", "nothing.json", "nothing.json"], "'nothing.json' cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_result_that_exists_is_kept(written, capsys):
    assert main(["bench", "rollout", *SHORT, "-o", str(written)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_check_that_is_no_number_fails():
    assert not Check("x", float("nan"), 1.0).passed
    assert Check("x", 0.0, 0.0).passed


def test_a_chart_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to draw"):
        draw_chart([Panel("seconds", {})], title="", across="", path=tmp_path / "x.png")
