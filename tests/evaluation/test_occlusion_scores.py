"""The memory test behind moving walls: what comes back is judged by colour, from where the true object is back."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from arl2.geometry import FrameRange
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.rollout.blocks import VideoBlock
from arl2.shapes.evaluation.occlusion import OcclusionScore, moving_occlusions, score_occluded
from arl2.shapes.evaluator.scoring import Share
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import Scenes


def test_behind_moving_walls_the_colour_is_what_is_kept(monkeypatch):
    """Going on with the true clips keeps it; going on with clips of another colour, or without an object, does not."""
    pipe = ARL2Pipeline.from_pretrained("shapes")
    how = {"clips": 5, "seed": 3, "hidden": 20, "num_frames": 89, "walls": "moving"}
    scenes = moving_occlusions(5, seed=3, hidden=20, known=33, num_frames=89)

    def kept_by(continuation: Scenes) -> OcclusionScore:
        def stream(self, prompts, *, num_frames, **others) -> Iterator[VideoBlock]:
            video = render(continuation, num_frames)
            yield VideoBlock(0, FrameRange(0, 24), torch.zeros(5, 16, 24, 8, 8), 0, video, 0.0, 0.0, 0.0)

        monkeypatch.setattr(ARL2Pipeline, "stream", stream)
        return score_occluded(pipe, **how)

    same = kept_by(scenes)
    assert same.model == same.truth == {"colour": Share(5, 5)}
    assert kept_by(replace(scenes, colour=(scenes.colour + 1) % 6)).model == {"colour": Share(0, 5)}
    assert kept_by(replace(scenes, radius=torch.full_like(scenes.radius, 0.5))).model == {"colour": Share(0, 5)}
