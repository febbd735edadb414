"""What ``arl2 shapes score`` prints: the figures as plain values, and the tables made of them."""

from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from arl2.cli.usage import LiveProgress
from arl2.evaluation.suites.folder import folder_subject
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.shapes.evaluation.folder import score_folder
from arl2.shapes.evaluation.occlusion import clip_length, score_occluded
from arl2.shapes.evaluation.score import READ_FRAMES, score_codec, score_model, score_truth
from arl2.shapes.evaluator.scoring import Share


def folder_report(folder: Path, *, quiet: bool) -> dict[str, Any]:
    """Scores of a folder."""
    found = folder_subject(folder, str(folder))
    with LiveProgress("video", len(found.videos), quiet=quiet) as progress:
        result = score_folder(found, on_progress=progress.show)
    return {
        "of": str(folder),
        "videos": len(result.videos),
        "notes": list(found.notes),
        "scores": {"as asked": _plain(result.shares)},
        "figures": result.steadiness.to_mapping(),
    }


def model_report(
    pipe: ARL2Pipeline,
    *,
    name: str,
    count: int,
    num_frames: int,
    seed: int,
    occlusion: int | None,
    walls: Literal["standing", "moving"],
    sampled: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """Scores of a model over the fixed prompts of a seed, beside those of true renders of the same scenes.

    Args:
        pipe: The model, on its device.
        name: What the person called it.
        count, num_frames, seed: Prompts, length of their videos, and which prompts.
        occlusion, walls: Of the memory test; None leaves it out.
        sampled: Steps, candidates and window, as ``score_model`` takes them.
        quiet: No live progress.
    """
    fixed: dict[str, Any] = {"prompts": count, "seed": seed, "num_frames": num_frames}
    with LiveProgress("video", count, quiet=quiet) as progress:
        model = score_model(pipe, **fixed, **sampled, on_progress=progress.show)
    with LiveProgress("true render", count, quiet=quiet) as progress:
        truth = score_truth(**fixed, fps=pipe.settings.fps, on_progress=progress.show)
    scores = {"as asked": _plain(model.shares), "true renders": _plain(truth.shares)}
    if model.last_second is not None and truth.last_second is not None:
        scores["last second"] = _plain({"colour": model.last_second})
        scores["last second, true renders"] = _plain({"colour": truth.last_second})
    if occlusion is not None:
        with LiveProgress("occlusion", count, quiet=quiet) as progress:
            kept = score_occluded(
                pipe,
                clips=count,
                seed=seed,
                hidden=occlusion,
                num_frames=clip_length(pipe, occlusion) if walls == "moving" else READ_FRAMES,
                walls=walls,
                steps=sampled["steps"],
                window=sampled["window"],
                on_progress=progress.show,
            )
        kept_name = f"kept through {occlusion} hidden"
        scores[kept_name], scores[f"{kept_name}, true renders"] = _plain(kept.model), _plain(kept.truth)
    codec = score_codec(pipe.codec, device=str(pipe.device))
    true_figures = {f"{figure}, true renders": value for figure, value in truth.steadiness.to_mapping().items()}
    return {
        "of": name,
        **fixed,
        "levels": list(pipe.settings.sampler(sampled["steps"]).timesteps_of(1)),
        "first_block_candidates": sampled["first_block_candidates"] or pipe.settings.first_block_candidates,
        "window": pipe.settings.window if sampled["window"] == "settings" else sampled["window"],
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
    facts = [f"{name} {value}" for name, value in report.items() if name not in ("of", "notes", "scores", "figures")]
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
    for note in report.get("notes", ()):
        console.print(note, soft_wrap=True)


def _plain(shares: dict[str, Share]) -> dict[str, dict[str, Any]]:
    return {name: share.to_mapping() for name, share in shares.items()}
