"""What a conversion of the published size takes on GPUs: figures by hand, what may grow, what is refused."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arl2.attention.memory import MemoryGeometry
from arl2.cli.main import main
from arl2.errors import CheckpointError, ConfigError
from arl2.files.records import record_from_mapping
from arl2.model.cost import clip_flops
from arl2.model.passes import TeacherForcing
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.training.conversion.align import AlignConfig
from arl2.training.conversion.cluster import Cluster
from arl2.training.conversion.distill import DistillConfig
from arl2.training.conversion.dry_run import Sketch, dry_run
from arl2.training.conversion.estimate import estimate_step
from arl2.training.conversion.named_teacher import named_sizes, require_folder
from arl2.training.conversion.students import load_teacher
from arl2.training.conversion.trainable import parameter_table, unfreeze
from arl2.training.conversion.watching import watched_attention
from arl2.training.engine.config import read_config_values, with_overrides

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = {"align": RECIPES / "wan-align.json", "distill": RECIPES / "wan-distill-22.json"}
KINDS = {"align": AlignConfig, "distill": DistillConfig}
# The published clip: 7 blocks of 3 latent frames of 30 x 52 tokens, clean and noisy.
BLOCK, BLOCKS, WIDTH, HIDDEN, LAYERS, HYBRID = 3 * 30 * 52, 7, 1536, 8960, 30, 22
TOKENS = 2 * BLOCKS * BLOCK


def settings_of(part: str, *words: str):
    return record_from_mapping(KINDS[part], with_overrides(read_config_values(FILES[part]), words))


@pytest.fixture(scope="module")
def sketches() -> dict[str, Sketch]:
    return {part: Sketch.of(settings_of(part)) for part in FILES}


def test_operations_of_the_published_clip_by_hand(sketches):
    linear = TOKENS * (8 * WIDTH**2 + 4 * WIDTH**2 + 4 * WIDTH * HIDDEN)  # q k v o, cross q and o, feed-forward
    cross = 4 * TOKENS * 512 * WIDTH
    ends = 2 * TOKENS * WIDTH * 64 * 3 // 2  # 16 channels of 2 x 2 patches; the head reads the noisy half alone
    seen = sum(2 * BLOCK * (past + 1) * BLOCK for past in range(BLOCKS))  # pairs of queries and keys, both halves
    own = 2 * BLOCKS * BLOCK**2
    softmax = LAYERS * (linear + cross + 4 * seen * WIDTH) + ends
    steps = {part: sketch.step() for part, sketch in sketches.items()}
    assert {step.teacher_flops for step in steps.values()} == {softmax}
    # Of the student all but the state branches is as easily counted; they take a few per cent.
    student = LAYERS * (linear + cross) + (LAYERS - HYBRID) * 4 * seen * WIDTH + HYBRID * 4 * own * WIDTH + ends
    assert 1.0 < steps["distill"].student_flops / student < 1.04
    alone = HYBRID * (TOKENS * 8 * WIDTH**2 + 4 * own * WIDTH)
    assert 1.0 < steps["align"].student_flops / alone < 1.1
    # Stage 2 goes back through every linear layer once, through attention 2.5 times, and forward once more.
    attention = student - LAYERS * linear - ends
    back = LAYERS * linear + 2.5 * attention + student
    assert 1.0 < steps["distill"].backward_flops / back < 1.04


@pytest.mark.parametrize("layers_alone", [False, True])
@pytest.mark.parametrize("plan", ["HHHHHH", "SHHSHS"])
def test_the_backward_pass_is_what_a_profiler_counts(plan, layers_alone):
    sizes = {"text_dim": 16, "text_len": 8, "freq_dim": 32, "block_frames": 3, "state_rank": 8, "ffn_rank": 8}
    model = CausalWanTransformer3DModel(plan, 2, 64, 512, **sizes)
    stage = 1 if layers_alone else 2
    unfreeze(model, stage)
    latents = torch.randn(1, 16, 9, 16, 16)
    hybrid = [i for i, letter in enumerate(plan) if letter == "H"]

    def run() -> torch.Tensor:
        return model(latents, torch.full((1, 9), 500.0), torch.randn(1, 8, 16), run=TeacherForcing(latents))

    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        if layers_alone:
            calls = {}
            with torch.no_grad(), watched_attention(model, hybrid, calls.__setitem__):
                run()
            made = [model.layers[i].self_attention(c.input, c.rotation, c.layout) for i, c in calls.items()]
            value = torch.stack([one.square().mean() for one in made]).sum()
        else:
            value = run().square().mean()
        with counter:
            value.backward()
    step = estimate_step(
        model.config,
        model.config,
        parameter_table(model, stage),
        MemoryGeometry(1, 8, 8, 3),
        frames=9,
        first_block_frames=None,
        checkpointing=False,
        layers_alone=layers_alone,
    )
    # The profiler sees neither solves nor in-place products of the delta rule, and attention as plain products, which
    # keep the scores that a fused kernel makes again. The estimate takes no notice of the first layer's inputs, which
    # need no gradients, nor of keys and values that are made for the clean half alone.
    above = {**model.config, "layer_plan": plan[plan.index("H") :]}
    forward = clip_flops(above, MemoryGeometry(1, 8, 8, 3), frames=9)
    again = 0 if layers_alone else 0.5 * (forward.self_attention + forward.cross_attention)
    assert 1.0 < (step.backward_flops - again) / counter.get_total_flops() < (1.3 if layers_alone else 1.15)


@pytest.mark.parametrize("part", FILES)
def test_more_gpus_never_need_more_memory_each(part, sketches):
    needed = [sketches[part].on(Cluster(gpus)) for gpus in (2, 4, 8, 64)]
    assert all(a.memory_bytes > b.memory_bytes for a, b in itertools.pairwise(needed))
    assert all(one.fits for one in needed)
    assert not sketches[part].on(Cluster(8, memory=18)).fits
    whole = Sketch.of(settings_of(part, 'loop.sharding="none"')).on(Cluster(8))
    assert needed[2].memory_bytes < whole.memory_bytes


def test_activations_must_be_computed_again(sketches):
    for part in FILES:
        kept = Sketch.of(settings_of(part, "activation_checkpointing=false")).on(Cluster(8))
        assert not kept.fits
        assert "does not fit" in kept.text()
        assert "activation_checkpointing" in kept.text()
        assert kept.memory["activations"] == sketches[part].on(Cluster(8)).kept_whole
    # Half precision halves frozen weights, and less than halves activations: what trains is computed in float32.
    full = Sketch.of(settings_of("distill", 'loop.compute="float32"')).step()
    half = sketches["distill"].step()
    assert full.flops == half.flops
    assert 1 < full.activation_bytes / half.activation_bytes < 2
    assert full.weight_bytes - half.weight_bytes == 2 * sketches["distill"].table.frozen


@given(gpus=st.sampled_from([1, 2, 4, 8, 16, 32, 64]), use=st.floats(0.1, 1.0), peak=st.floats(50, 5000))
@settings(max_examples=8, deadline=None)
def test_gpu_hours_are_steps_times_time_times_gpus(sketches, gpus, use, peak):
    costs = sketches["align"].on(Cluster(gpus, tflops=peak, utilisation=use))
    # Stage 1 has nothing to wait for: the hours do not depend on how many share the work.
    clips = 1000 * 64
    assert costs.gpu_hours == pytest.approx(clips * sketches["align"].step().flops / (peak * 1e12 * use) / 3600)
    assert costs.gpu_hours == pytest.approx(gpus * 1000 * costs.step_seconds / 3600)


@pytest.mark.parametrize(("part", "other", "gpus"), [("align", "distill", 8), ("distill", "align", 64)])
def test_the_command_tells_both_stages_and_the_paper(part, other, gpus, sketches, capsys, tmp_path):
    words = ["train", part, str(tmp_path / "run"), "--settings", str(FILES[part]), "--dry-run", "--gpus", str(gpus)]
    assert main([*words, "--other-stage", str(FILES[other]), "--teacher-clips", "16384"]) == 0
    said = capsys.readouterr().out
    assert "65,520 tokens with both halves" in said
    assert f"on {gpus} GPUs of 80 GB and 989 TFLOP/s, of which 40 %" in said
    assert "fits: " in said
    assert "about 156 H100-hours" in said
    assert "not in it" not in said
    (total,) = [float(line.split()[2]) for line in said.splitlines()[-3:] if "in all" in line]
    cluster = Cluster(gpus)
    stages = sum(sketch.on(cluster).gpu_hours for sketch in sketches.values())
    assert total == pytest.approx(stages + 16384 * cluster.hours(sketches[part].teacher_clip_flops()), abs=0.1)
    # The recipes' lengths are chosen to stay inside what the paper spent.
    assert 120 < total < 156
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run", "--gpus", "0"], "'--gpus': got '0'; give a whole number from 1"),
        (["--dry-run", "--gpus", "48"], "batches_per_step = 64 cannot be shared out evenly over 48 GPUs"),
        (["--dry-run", "--gpus", "8", "--utilisation", "1.5"], "utilisation is 1.5"),
        (["--dry-run", "--gpus", "8", "--gpu-memory", "-1"], "'--gpu-memory': got '-1'; give a number above 0"),
        (["--dry-run", "--gpus", "8", "--other-stage", "missing.json"], "cannot be read"),
        (["--dry-run", "--gpu-tflops", "100"], "--gpu-tflops goes with --gpus N"),
        (["--gpus", "8"], "--gpus goes with --dry-run"),
    ],
)
def test_words_that_cannot_be(words, said, capsys, tmp_path):
    assert main(["train", "align", str(tmp_path / "run"), "--settings", str(FILES["align"]), *words]) == 2
    assert said in capsys.readouterr().err


def test_one_stage_twice_is_refused():
    with pytest.raises(ConfigError, match="Both settings are of stage 1"):
        dry_run(settings_of("align"), Cluster(8), other_stage=settings_of("align"))


def test_a_teacher_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert named_sizes("shapes") is None
    assert named_sizes(tmp_path.name) is None
    large = load_teacher("wan2.1-t2v-14b", device="meta").model
    assert sum(p.numel() for p in large.parameters()) == 14_288_491_584
    assert load_teacher("causal-forcing-framewise", device="meta").model.config.block_frames == 1
    with pytest.raises(ConfigError, match="'arl2' is a hybrid model"):
        load_teacher("arl2", device="meta")
    # A run needs the files.
    with pytest.raises(CheckpointError, match="'causal-forcing' is not complete on this disk; fetch it with"):
        load_teacher("causal-forcing", device="cpu")
    with pytest.raises(ConfigError, match="names sizes, enough for --dry-run"):
        load_teacher("wan2.1-t2v-1.3b", device="cpu")
    monkeypatch.setattr("arl2.training.conversion.named_teacher.resolve_source", lambda source: None)
    with pytest.raises(ConfigError, match="'arl2 export causal-forcing FOLDER'"):
        require_folder("causal-forcing")


def test_a_run_that_the_clock_ends_costs_what_the_clock_says(sketches):
    config = settings_of("align", "loop.steps=null", "loop.max_minutes=90")
    assert Sketch.of(config).on(Cluster(8)).gpu_hours == 12
    assert math.isclose(sketches["align"].on(Cluster(8)).step_seconds, 11.1, rel_tol=0.02)
