"""The hybrids that ship: converted from the shipped teacher, small, and able to run."""

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
