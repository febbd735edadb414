"""The benchmark of a training step takes both stages through the real tasks and loop; here at a small size."""

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "wan_train_step.py"
SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64}
SMALL |= {"text_dim": 16, "text_len": 8, "freq_dim": 32}


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wan_train_step", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_of_both_stages(benchmark, tmp_path, capsys):
    small = ["--height", "32", "--width", "64", "--plan", "HS", "--changes", json.dumps(SMALL), "--threads", "1"]
    size = argparse.Namespace(preset="wan2.1-t2v-1.3b", plan="HS", changes=SMALL, height=32, width=64)
    benchmark.write_teacher(tmp_path / "teacher", size)
    found = {}
    for stage in ("align", "distill"):
        benchmark.main([*small, "--stage", stage, "--folder", str(tmp_path)])
        found[stage] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert f"{stage} " in benchmark.line(found[stage])
    for step in found.values():
        assert step["loss"] > 0
        assert step["gradient_norm"] > 0
        assert step["tokens"] == 2 * 6 * 2 * 4
        assert step["masters"] == ["torch.float32"]
        assert step["estimated_bytes"] < step["peak_bytes"]  # the interpreter alone is larger than so small a model
        assert step["tflop"] > 0
    # One hybrid layer: gates, features; then also the low-rank changes of queries, keys, values and feed-forward.
    align, distill = (found[stage]["trained_parameters"] for stage in ("align", "distill"))
    assert align == 3 * 2 * 32 + 2 * 2 + 3 * 2 * 16 * 16
    assert distill - align == 16 * (3 * 2 * 32 + 2 * (32 + 64))
