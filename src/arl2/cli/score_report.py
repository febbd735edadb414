"""What ``arl2 shapes score`` prints: the figures as plain values, and the tables made of them."""

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table

from arl2.cli.usage import LiveProgress
from arl2.pipeline.devices import checked_device
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.shapes.evaluation.folder import find_videos, score_folder
from arl2.shapes.evaluation.occlusion import clip_length, score_occluded
from arl2.shapes.evaluation.score import READ_FRAMES, score_codec, score_model, score_truth
from arl2.shapes.evaluator.scoring import Share


def folder_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores of a folder."""
    with LiveProgress("video", len(find_videos(arguments.folder)), quiet=arguments.json) as progress:
        result = score_folder(arguments.folder, on_progress=progress.show)
    return {
        "of": str(arguments.folder),
        "videos": len(result.asked),
        "scores": {"as asked": _plain(result.shares)},
        "figures": result.steadiness.to_mapping(),
    }


def model_report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores of a model over the fixed prompts of a seed, beside those of true renders of the same scenes."""
    device = checked_device(arguments.device)
    pipe = ARL2Pipeline.from_pretrained(arguments.model)
    if device != "cpu":
        pipe.to(device)
    sampled = {"steps": arguments.steps, "window": arguments.window}
    fixed: dict[str, Any] = {
        "prompts": arguments.prompts,
        "seed": arguments.seed,
        "num_frames": arguments.frames,
    }
    with LiveProgress("video", arguments.prompts, quiet=arguments.json) as progress:
        model = score_model(
            pipe,
            **fixed,
            **sampled,
            first_block_candidates=arguments.candidates,
            on_progress=progress.show,
        )
    with LiveProgress("true render", arguments.prompts, quiet=arguments.json) as progress:
        truth = score_truth(**fixed, fps=pipe.settings.fps, on_progress=progress.show)
    scores = {"as asked": _plain(model.shares), "true renders": _plain(truth.shares)}
    if model.last_second is not None and truth.last_second is not None:
        scores["last second"] = _plain({"colour": model.last_second})
        scores["last second, true renders"] = _plain({"colour": truth.last_second})
    if arguments.occlusion is not None:
        length = clip_length(pipe, arguments.occlusion) if arguments.walls == "moving" else READ_FRAMES
        with LiveProgress("occlusion", arguments.prompts, quiet=arguments.json) as progress:
            kept = score_occluded(
                pipe,
                clips=arguments.prompts,
                seed=arguments.seed,
                hidden=arguments.occlusion,
                num_frames=length,
                walls=arguments.walls,
                **sampled,
                on_progress=progress.show,
            )
        name = f"kept through {arguments.occlusion} hidden"
        scores[name], scores[f"{name}, true renders"] = _plain(kept.model), _plain(kept.truth)
    codec = score_codec(pipe.codec, device=device)
    true_figures = {f"{name}, true renders": value for name, value in truth.steadiness.to_mapping().items()}
    return {
        "of": arguments.model,
        **fixed,
        "levels": list(pipe.settings.sampler(arguments.steps).timesteps_of(1)),
        "first_block_candidates": arguments.candidates or pipe.settings.first_block_candidates,
        "window": pipe.settings.window if arguments.window == "settings" else arguments.window,
        "scores": scores,
        "figures": {
            "codec PSNR, dB": codec.psnr,
            "codec PSNR of differences, dB": codec.difference_psnr,
            **model.steadiness.to_mapping(),
            **true_figures,
        },
    }


def print_report(report: dict[str, Any]) -> None:
    """The figures as tables."""
    console = Console(highlight=False)
    facts = [f"{name} {value}" for name, value in report.items() if name not in ("of", "scores", "figures")]
    console.print(f"[bold]{report['of']}[/]: {', '.join(facts)}", soft_wrap=True)
    shares = Table(box=None, pad_edge=False)
    for heading in ("", "attribute"):
        shares.add_column(heading)
    for heading in ("share", "95 % interval", "of"):
        shares.add_column(heading, justify="right")
    for group, values in report["scores"].items():
        for number, (attribute, one) in enumerate(values.items()):
            share = "unknown" if one["share"] is None else f"{one['share']:.1%}"
            interval = f"{one['low']:.1%} to {one['high']:.1%}"
            shares.add_row(group if number == 0 else "", attribute, share, interval, str(one["of"]))
    console.print(shares)
    for name, value in report["figures"].items():
        console.print(f"{name}: {'unknown' if value is None else f'{value:.4g}'}")


def _plain(shares: dict[str, Share]) -> dict[str, dict[str, Any]]:
    return {name: share.to_mapping() for name, share in shares.items()}
