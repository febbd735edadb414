"""The hybrids that ship: converted from the shipped teacher, small, and able to run."""

from collections import deque

import numpy as np
import pytest
import torch
from tests.pipeline.red_on_navy import assert_red_on_navy

from arl2 import ARL2Pipeline
from arl2.attention.plan import converted_layers
from arl2.pipeline.folder import pipeline_folder

SHARES = {"shapes-50": 0.5, "shapes-75": 0.75, "shapes-100": 1.0}


@pytest.fixture(scope="module")
def teacher() -> ARL2Pipeline:
    return ARL2Pipeline.from_pretrained("shapes-teacher")


@pytest.mark.parametrize("name", SHARES)
def test_it_is_the_teacher_with_states_in_place_of_the_past(name, teacher):
    pipe = ARL2Pipeline.from_pretrained(name)
    plan = str(pipe.transformer.config.layer_plan)
    assert len(converted_layers(plan)) / len(plan) == SHARES[name]
    ours, theirs = pipe.transformer.state_dict(), teacher.transformer.state_dict()
    for key, frozen in theirs.items():
        # A feed-forward with a low-rank change beside it keeps its own weights under another name.
        beside = ".linear.".join(key.rsplit(".", 1))
        assert torch.equal(ours[key if key in ours else beside], frozen), key
    assert pipe.settings.window == 9
    assert sum(file.stat().st_size for file in pipeline_folder(name).transformer.iterdir()) < 3.1e6


@pytest.mark.parametrize("name", SHARES)
def test_a_stream_keeps_the_colour_that_was_asked(name):
    pipe = ARL2Pipeline.from_pretrained(name)
    blocks = list(pipe.stream("a red circle moves right on navy", seed=0, num_frames=81))
    assert_red_on_navy(blocks[-1].video[0, :, -1])


def test_a_stream_of_the_default_outlives_its_training():
    """Clips of training had 216 video frames. States without a horizon let the circle stop, or vanish, before 300."""
    blocks = ARL2Pipeline.from_pretrained("shapes-100").stream(
        "a red circle moves right on navy", seed=0, num_frames=705
    )
    frames = np.concatenate([*deque((block.pixels() for block in blocks), maxlen=8)]).astype(int)
    is_red = (frames[..., 0] > 150) & (frames[..., 2] < 100)
    # At an edge only the part inside moves, at half the speed.
    is_whole = [one.sum() > 40 and not one[:, [0, -1]].any() for one in is_red]
    places = [np.nonzero(one)[1].mean() if whole else np.nan for one, whole in zip(is_red, is_whole, strict=True)]
    steps = np.diff(places)
    steps = steps[~np.isnan(steps)]
    assert len(steps) > len(frames) // 4
    assert np.median(steps) > 0.5  # pixels a frame, to the right
