"""The comparison of converted models: every cell once, rows of a recipe's folder, tables and curve."""

import importlib.util
import json
import math
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tests.training.conversion import distill_config, teacher_folder

from arl2.errors import ConfigError
from arl2.files.records import record_to_mapping
from arl2.shapes.evaluator.scoring import Share
from arl2.training.conversion.students import export_student, load_teacher, make_student, student_settings
from line_chart import line_chart
from measured import Measurements

ROOT = Path(__file__).parents[2]
WORDS = {"title": "kept", "across": "hidden"}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conversion_benchmark", ROOT / "benchmarks" / "conversion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_measurement_is_made_once(tmp_path):
    kept, made = Measurements(tmp_path / "cells"), []

    def measure() -> dict[str, int]:
        made.append(1)
        # Whoever comes meanwhile leaves it to this one.
        assert not Measurements(tmp_path / "cells").make({"a": 1}, measure, wait=False)
        return {"seen": 7}

    assert kept.known({"a": 1}) is None
    assert kept.make({"a": 1}, measure)
    assert Measurements(tmp_path / "cells").make({"a": 1}, measure)
    assert kept.known({"a": 1}) == {"seen": 7}
    assert kept.known({"a": 2}) is None
    assert made == [1]


def test_what_broke_off_is_measured_again(tmp_path):
    kept = Measurements(tmp_path)
    with pytest.raises(ZeroDivisionError):
        kept.make({}, lambda: {"seen": 1 / 0})
    assert kept.make({}, lambda: {"seen": 2})
    assert kept.known({}) == {"seen": 2}


def test_a_line_rises_with_its_shares(tmp_path):
    def heights(low: int, high: int) -> list[float]:
        """Mean row of the line's own pixels in the left and in the right half."""
        line_chart({"one": {6: Share(low, 1000), 48: Share(high, 1000)}}, **WORDS, path=tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as chart:
            dark = np.asarray(chart.convert("L"))[56:376, 80:600] < 60
        return [float(np.nonzero(half)[0].mean()) for half in np.array_split(dark, 2, axis=1)]

    left, right = heights(100, 900)
    assert left > right
    left, right = heights(900, 100)
    assert left < right
    with pytest.raises(ConfigError, match="one line or more"):
        line_chart({"one": {6: Share(0, 0)}}, **WORDS, path=tmp_path / "x.png")


def recipe_folder(folder: Path) -> Path:
    """As recipes/shapes.sh leaves it, of the stand-in."""
    config = distill_config(folder, teacher=str(teacher_folder(folder / "teacher")))
    teacher = load_teacher(config.teacher, device="cpu")
    student = make_student(teacher, config.student())
    run = folder / "distill-50"
    export_student(student, teacher, run / "export", settings=student_settings(teacher, student))
    (run / "config.json").write_text(json.dumps(record_to_mapping(config)))
    (run / "metrics.jsonl").write_text('{"step": 6, "minutes": 2.5}\n')
    shutil.copytree(run / "export", folder / "mean-50-bounce1" / "export")
    return folder


@pytest.mark.filterwarnings("ignore::arl2.pipeline.assemble.UntrainedConversionWarning")  # one row is that
def test_rows_of_a_recipe_are_measured_once_and_shown(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "LONG", 117)
    out = tmp_path / "out"
    words = ["--recipe", str(recipe_folder(tmp_path / "recipe")), "-o", str(out), "--prompts", "1", "--clips", "1"]
    words += ["--hidden", "6", "--repeats", "1", "--quick", "50 %, untrained", "50 %, stage 1", "teacher, window 9"]
    benchmark.main(words)
    said = capsys.readouterr()
    rows = json.loads(said.out.splitlines()[-1])["rows"]
    assert list(rows) == [
        "teacher",
        "teacher, window 9",
        "50 %, untrained",
        "50 %, stage 1",
        "50 %, stage 2",
        "50 % bounce1, mean",
        "true renders",
    ]
    assert "occlusion" in rows["teacher"]
    assert "occlusion" not in rows["50 %, untrained"]
    assert rows["50 %, stage 2"]["plan"] == "HS"
    assert rows["50 %, stage 2"]["minutes"] == 2.5
    assert 0 == rows["teacher"]["trained_share"] < rows["50 %, stage 1"]["trained_share"]
    assert rows["50 %, stage 1"]["trained_share"] < rows["50 %, stage 2"]["trained_share"] < 1
    stream = rows["50 %, stage 2"]["stream"]
    assert (
        stream["81"]["memory_bytes"] == stream["117"]["memory_bytes"] < rows["teacher"]["stream"]["117"]["memory_bytes"]
    )
    assert stream["81"]["block_seconds"] > 0
    low, high = (rows["teacher"]["prompts"]["shares"]["wall"][end] for end in ("low", "high"))
    assert 0 <= low < high <= 1
    assert not math.isnan(rows["teacher"]["prompts"]["flicker"])
    assert json.loads((out / "result.json").read_text())["rows"] == rows
    assert "| 50 %, stage 2 | HS |" in (out / "result.md").read_text()
    with Image.open(out / "occlusion.png") as chart:
        assert chart.width > 400

    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    assert "teacher, occlusion 6" in said.err
    benchmark.main(words)
    again = capsys.readouterr()
    assert again.err == ""
    assert json.loads(again.out.splitlines()[-1])["rows"] == rows
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")} == cells


def test_rows_need_labels_of_their_own(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--model", "one=shapes", "--model", "one=shapes@9", "-o", str(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.main(["--model", "one=shapes", "--quick", "two", "-o", str(tmp_path)])
    assert "['two'] are not there" in capsys.readouterr().err
    assert benchmark.row_of("a b=shapes@9").window == 9
    assert benchmark.row_of("a b=shapes@full").window is None
    assert benchmark.row_of("a b=runs/x@y").model == "runs/x@y"
