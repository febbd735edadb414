"""Every part of ``arl2 bench`` at a tiny size: what it reports, and that it reports what it says."""

import json
from types import SimpleNamespace

import pytest
import torch

from arl2.cli.main import main
from arl2.cli.miniature import VARIABLE
from arl2.evaluation.bench import part as part_module
from arl2.evaluation.bench import startup
from arl2.evaluation.bench.block import BlockPart
from arl2.evaluation.bench.decode import DecodePart
from arl2.evaluation.bench.gate import kernel_checks, streaming_check
from arl2.evaluation.bench.kernels import KernelsPart
from arl2.evaluation.bench.models import ModelSize
from arl2.evaluation.bench.options import (
    BlockOptions,
    DecodeOptions,
    KernelOptions,
    ModelOptions,
    RolloutOptions,
    SnapshotOptions,
    StartupOptions,
    TrainOptions,
)
from arl2.evaluation.bench.part import run_part
from arl2.evaluation.bench.rollout import RolloutPart
from arl2.evaluation.bench.snapshot import SnapshotPart
from arl2.evaluation.bench.startup import StartupPart
from arl2.evaluation.bench.timing import Timing
from arl2.evaluation.bench.train import TrainPart
from arl2.model.presets import preset_config

TINY = {"preset": "tiny", "device": "cpu", "repeats": 1}


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own rates take seconds to measure; they have a test of their own."""
    monkeypatch.setattr(part_module, "ceilings", lambda *given: {"matrix_product_flops": 1e11, "copy_bytes": 1e10})


def values_of(part) -> dict[str, dict[str, object]]:
    """Every row's values, medians in the place of times."""
    result = run_part(part)
    assert result.complete, [check for check in result.checks if not check.passed]
    assert json.loads(json.dumps(result.to_mapping()))["rows"]
    return {
        row.name: {name: x.median if isinstance(x, Timing) else x for name, x in row.values.items()}
        for row in result.rows
    }


def test_small_is_a_quarter_of_wan():
    ours, wan = (ModelSize.of(ModelOptions(preset=preset)) for preset in ("small", "wan-1.3b"))
    theirs = preset_config("wan2.1-t2v-1.3b")
    assert ours.sizes["attention_head_dim"] == theirs["attention_head_dim"]
    for name in ("num_attention_heads", "ffn_dim"):
        assert 4 * ours.sizes[name] == theirs[name] == wan.sizes[name]
    assert 4 * ours.height * ours.width == wan.height * wan.width
    assert 4 * ours.rank == wan.rank
    assert wan.layers == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gate_passes_in_every_dtype(dtype):
    checks = [*kernel_checks(dtype, "cpu"), streaming_check("HS", dtype, "cpu", window=5, sink=1)]
    assert all(check.passed for check in checks), checks


def test_rollout_keeps_what_is_constant_constant():
    part = RolloutPart(RolloutOptions(**TINY, num_frames=81))
    rows = values_of(part)
    assert part.video_frames == 81
    window = [rows[f"hybrid, window and sink, after {n}"]["allocated_bytes"] for n in ("0", "45", "225", "11,985")]
    assert len(set(window)) == 1
    full = [rows[f"softmax, full cache, after {n}"]["memory_bytes"] for n in ("0", "33", "69")]
    assert full == [0, full[2] // 2, full[2]]
    # Three of four layers keep a state in place of a cache.
    heads, head_dim = 2, 32
    states = 3 * heads * head_dim**2 * 4
    assert rows["hybrid as published, after 69"]["memory_bytes"] == full[2] // 4 + states


def test_block_counts_what_the_model_costs():
    rows = values_of(BlockPart(BlockOptions(**TINY)))
    assert {"denoising pass", "cache-update pass", "self-attention, hybrid", "self-attention, softmax"} <= rows.keys()
    assert {"state update", "cross-attention", "feed-forward"} <= rows.keys()
    for row in rows.values():
        assert row["seconds"] > 0
        assert row["kernels"] > 0
        assert 0 < row["product_share"] < row["floor_share"]
    # Two products of 192 tokens, 64 wide and 384 deep; three LoRAs aside.
    assert rows["feed-forward"]["flops"] == pytest.approx(4 * 192 * 64 * 384, rel=0.1)
    parts = sum(rows[f"self-attention, {kind}"]["flops"] * n for kind, n in (("hybrid", 3), ("softmax", 1)))
    parts += 4 * (rows["cross-attention"]["flops"] + rows["feed-forward"]["flops"])
    assert rows["denoising pass"]["flops"] == pytest.approx(parts, rel=0.1)  # embedding and head are left out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_have_twins_and_gradients(dtype):
    rows = values_of(KernelsPart(KernelOptions(**TINY, dtype=dtype)))
    for name in ("state update", "attention inside a block", "RMS norm and rotation", "input of a causal convolution"):
        row = rows[name]
        assert row["over_naive_times"] == pytest.approx(row["naive_seconds"] / row["ours_seconds"])
    assert rows["state update"]["trained_seconds"] > 0
    assert {"state update, chunked", "state update, blockwise"} <= rows.keys()
    assert rows["attention inside a block"]["library"] == "torch, heads first"


@pytest.mark.parametrize("codec", ["wan", "tiny"])
def test_decode(codec):
    part = DecodePart(DecodeOptions(codec=codec, base_dim=4, blocks=2, height=16, width=24, device="cpu", repeats=1))
    rows = values_of(part)
    ours = rows["ours, block by block"]
    assert 0 < ours["latent_frame_seconds"] < ours["clip_seconds"]
    assert ours["cache_bytes"] > 0
    assert ("diffusers, whole clip" in rows) == (codec == "wan")


def test_snapshots():
    rows = values_of(SnapshotPart(SnapshotOptions(**TINY)))
    light, exact = (rows[f"hybrid, window in the rest, {kind}"] for kind in ("light", "exact"))
    assert light["file_bytes"] < exact["file_bytes"]
    once = rows["all hybrid, the stream"]
    assert once["memory_bytes"] == 4 * 2 * 32**2 * 4
    assert once["fork_seconds"] > 0
    assert once["decoder_bytes"] > 1e6


def test_a_step_of_both_stages():
    rows = values_of(TrainPart(TrainOptions(**TINY, layers=2, hybrid_share=0.5)))
    for row in rows.values():
        assert row["loss"] > 0
        assert row["gradient_norm"] > 0
        assert row["step_seconds"] > 0
        assert row["tokens"] == 2 * 6 * 4 * 16
        assert row["estimated_bytes"] > 0
    # One hybrid layer: gates, features; then also the LoRAs of queries, keys, values and feed-forward.
    width, heads, head_dim, ffn, rank = 64, 2, 32, 384, 16
    align, distill = (rows[stage]["trained_parameters"] for stage in ("align", "distill"))
    assert align == 3 * heads * width + 2 * heads + 3 * heads * head_dim**2
    assert distill - align == rank * (3 * 2 * width + 2 * (width + ffn))


def test_startup(monkeypatch, capsys):
    """The measured process runs in this one, as torch is imported here already."""
    started = []

    def run(command, **options):
        started.append(command[-1])
        startup.main(command[3:])
        return SimpleNamespace(returncode=0, stdout=capsys.readouterr().out, stderr="")

    monkeypatch.setattr(startup, "subprocess", SimpleNamespace(run=run))
    rows = values_of(StartupPart(StartupOptions(device="cpu", repeats=1)))
    assert len(started) == 3  # two of them are the gate
    total = rows["process start to first block"]["seconds"]
    stages = [values["seconds"] for name, values in rows.items() if name != "process start to first block"]
    assert len(stages) == 4
    assert sum(stages) == pytest.approx(total)


def test_a_process_that_fails_is_named(monkeypatch, capsys):
    failed = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nConfigError: no such model")
    monkeypatch.setattr(startup, "subprocess", SimpleNamespace(run=lambda command, **options: failed))
    assert main(["bench", "startup", "--device", "cpu"]) == 2
    assert "one block failed: ConfigError: no such model" in capsys.readouterr().err


def test_in_miniature(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "1")
    assert main(["bench", "kernels", "--preset", "wan-14b", "--device", "cpu", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert (settings["preset"], settings["repeats"]) == ("tiny", 1)
