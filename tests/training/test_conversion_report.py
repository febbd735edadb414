"""What the report of a conversion says, on the published sizes without their weights."""

import functools
from dataclasses import replace

import pytest
import torch

from arl2.checkpoints.conversion import convert
from arl2.model.presets import preset_config
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.report import ConversionReport, report_conversion
from support import tiny_model


@functools.cache
def wan(hybrid_layers: int = 22) -> ConversionReport:
    with torch.device("meta"):
        model = CausalWanTransformer3DModel(**preset_config("wan2.1-t2v-1.3b"))
    return report_conversion(model.config, convert(model, range(hybrid_layers)), GenerationSettings())


def tiny(settings: GenerationSettings) -> ConversionReport:
    model = tiny_model("SSS")
    return report_conversion(model.config, convert(model, "HSH", state_rank=2, ffn_rank=2), settings)


def test_the_published_conversion_of_the_small_wan() -> None:
    report = wan()
    assert report.pretrained == 1_418_996_800
    softmax, hybrid = sorted(report.kinds, key=lambda kind: kind.layers)
    assert (softmax.letter, softmax.layers, softmax.new) == ("S", 8, 0)
    assert (hybrid.letter, hybrid.layers) == ("H", 22)
    # Spec 4: 0.65 M and 1.13 M a layer, 24.8 M = 1.75 % in all.
    assert round(hybrid.stage_1 / 1e6, 2) == 0.65
    assert round(hybrid.stage_2 / 1e6, 2) == round(hybrid.new / 1e6, 2) == 1.13
    assert report.stage_2 == report.new == 22 * hybrid.new == 24_826_384
    assert report.stage_1 == 22 * hybrid.stage_1
    assert f"{100 * report.share(report.stage_2):.2f}" == "1.75"
    assert report.plan_after == "H" * 22 + "S" * 8


def test_costs_grow_with_the_softmax_layers_alone() -> None:
    report, short, long = wan(), *wan().costs
    assert (short.video_frames, short.latent_frames, long.video_frames, long.latent_frames) == (81, 21, 921, 231)
    cache = short.memory_before // short.latent_frames
    assert (short.memory_before, long.memory_before) == (21 * cache, 231 * cache)
    states = 22 * 12 * 128 * 128 * 4
    assert short.memory_after == 21 * cache * 8 // 30 + states
    assert long.memory_after == 231 * cache * 8 // 30 + states
    grown = (long.flops_after - short.flops_after) / (long.flops_before - short.flops_before)
    # Four denoising passes and a clean one, which stops at the last layer, a softmax layer.
    assert grown == pytest.approx((4 * 8 + 7) / (4 * 30 + 29))
    everything = wan(30).costs
    assert everything[0].flops_after == everything[1].flops_after
    assert everything[0].memory_after == everything[1].memory_after
    assert report.passes == 4


def test_a_window_and_guidance_count() -> None:
    size = {"height": 64, "width": 64}
    open_, windowed = tiny(GenerationSettings(**size)).costs, tiny(GenerationSettings(window=22, **size)).costs
    assert windowed == (open_[0], replace(open_[0], video_frames=921, latent_frames=232))
    one, two = (
        tiny(GenerationSettings(solver="euler", solver_steps=8, guidance_scale=s, negative_prompt="bad", **size))
        for s in (1.0, 5.0)
    )
    assert one.passes == two.passes == 8
    for single, double in zip(one.costs, two.costs, strict=True):
        assert double.flops_before == 2 * single.flops_before
        assert double.memory_after == 2 * single.memory_after


def test_layers_that_were_hybrid_before_are_not_new() -> None:
    once = convert(tiny_model("SSS"), "HSS", state_rank=2, ffn_rank=2).model
    twice = convert(once, "HSH", state_rank=2, ffn_rank=2)
    settings = GenerationSettings(height=64, width=64)
    report = report_conversion(once.config, twice, settings)
    assert [(kind.letter, kind.layers, kind.new > 0) for kind in report.kinds] == [
        ("S", 1, False),
        ("H", 1, False),
        ("H", 1, True),
    ]
    assert report.stage_2 == 2 * report.new
