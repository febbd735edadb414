"""What each mode of a prompt change does: does the picture follow the new prompt, and how big is the jump?

    python benchmarks/prompt_change.py --model shapes --clips 24 --sheet docs/prompt-change.png

Clips begin under one prompt; after ``BEFORE`` video frames the prompt differs from it in one attribute. The oracle
reads the end of each clip against the new prompt. "changed" is the share that shows the attribute that was changed,
"kept" the share that shows all the others; "jump" is the mean difference of the two video frames at the change, over
that of neighbouring video frames elsewhere (1: nothing to be seen there).
"""

import argparse
import json
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from arl2 import ARL2Pipeline
from arl2.rollout.settings import CHANGE_MODES
from arl2.shapes.evaluator.oracle import read_all
from arl2.shapes.prompts.captions import caption
from arl2.shapes.prompts.request import ATTRIBUTES, SceneRequest
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from arl2.video.pixels import to_bytes

BEFORE, AFTER, SETTLING = 45, 84, 24
BATCH = 12
NAMES = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS[:4], "background": tuple(BACKGROUNDS)}
CHANGES = ("colour", "background", "motion", "shape")


def pairs(count: int, seed: int) -> list[tuple[SceneRequest, SceneRequest, str]]:
    """What is asked first, what then, and the attribute in which the two differ."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        first = {name: str(draw.choice(values)) for name, values in NAMES.items()}
        changed = CHANGES[number % len(CHANGES)]
        other = str(draw.choice([value for value in NAMES[changed] if value != first[changed]]))
        before = SceneRequest(**first, wall=False)
        found.append((before, replace(before, **{changed: other}), changed))
    return found


@torch.no_grad()
def run(pipe: ARL2Pipeline, asked: list, mode: str, seed: int) -> Tensor:
    """All clips ``[clips, 3, BEFORE + AFTER, height, width]``."""
    clips = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        blocks, changed = [], False
        with pipe.stream([caption(one[0]) for one in part], seed=seed + start, num_frames=BEFORE + AFTER) as stream:
            for block in stream:
                blocks.append(block.video.float().clamp(-1, 1).cpu())
                if stream.video_frames >= BEFORE and not changed:
                    stream.change_prompt([caption(one[1]) for one in part], mode)
                    changed = True
        clips.append(torch.cat(blocks, dim=2))
    return torch.cat(clips)


def verdicts(video: Tensor, asked: list) -> dict[str, float]:
    """Shares and the jump, see the module's docstring."""
    readings = read_all(video[:, :, BEFORE + SETTLING :])
    changed, kept = [], []
    for reading, (_, after, attribute) in zip(readings, asked, strict=True):
        right = {name: getattr(reading, name) == getattr(after, name) for name in ATTRIBUTES}
        changed.append(right.pop(attribute))
        kept.append(all(right.values()))
    steps = (video[:, :, 1:] - video[:, :, :-1]).abs().mean(dim=(1, 3, 4))
    usual = torch.cat([steps[:, : BEFORE - 1], steps[:, BEFORE:]], dim=1).mean(1)
    jump = (steps[:, BEFORE - 1] / usual).median().item()
    return {"changed": float(np.mean(changed)), "kept": float(np.mean(kept)), "jump": round(jump, 2)}


def sheet(rows: list[tuple[str, Tensor, str]], path: str) -> None:
    """One line of pictures a mode: every sixth video frame, a bar at the change."""
    lines = []
    for name, video, words in rows:
        frames = to_bytes(video)[::6]
        strip = np.concatenate(list(frames), axis=1)
        at = -(-BEFORE // 6) * frames.shape[2]
        strip[:, at - 1 : at + 1] = (255, 140, 0)
        label = Image.new("RGB", (strip.shape[1], 14), "white")
        ImageDraw.Draw(label).text((2, 1), f"{name}: {words}", fill="black")
        lines += [np.asarray(label), strip]
    Image.fromarray(np.concatenate(lines)).save(path)


def main() -> None:
    """Print a line a mode, and JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decays", type=float, nargs="*", default=[0.0, 0.25, 0.5, 0.75, 0.9, 1.0])
    parser.add_argument("--sheet", help="PNG of one clip under every mode")
    parser.add_argument("--shown", type=int, default=0, help="which clip")
    given = parser.parse_args()
    pipe = ARL2Pipeline.from_pretrained(given.model)
    asked = pairs(given.clips, given.seed)
    first, then, _ = asked[given.shown]
    words = f"{caption(first)}  ->  {caption(then)}"
    settings, rows, figures = pipe.settings, [], {}
    hybrid = "H" in pipe.transformer.config.layer_plan
    trials = [(mode, settings.refresh_decay) for mode in CHANGE_MODES if mode != "refresh"]
    trials += [("refresh", decay) for decay in (given.decays if hybrid else [settings.refresh_decay])]
    for mode, decay in trials:
        pipe.settings = replace(settings, refresh_decay=decay)
        name = f"refresh, states x {decay:g}" if mode == "refresh" and hybrid else mode
        video = run(pipe, asked, mode, given.seed)
        figures[name] = verdicts(video, asked)
        rows.append((name, video[given.shown], words))
        print(f"{name:24} {figures[name]}", flush=True)
    if given.sheet:
        sheet(rows, given.sheet)
    print(json.dumps({"model": given.model, "clips": given.clips, "seed": given.seed, "modes": figures}))


if __name__ == "__main__":
    main()
