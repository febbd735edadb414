"""The model that the shipped one learnt to draw like: a softmax model of more levels, with a text part of its own."""

from tests.pipeline.red_on_navy import assert_red_on_navy

from arl2 import ARL2Pipeline
from arl2.pipeline.folder import pipeline_folder


def test_it_has_a_text_part_of_its_own_and_the_others_share_one():
    flow, few = pipeline_folder("shapes-flow"), pipeline_folder("shapes")
    assert flow.codec == few.codec
    assert flow.text != few.text
    assert pipeline_folder("shapes-75").text == few.text


def test_it_draws_in_many_levels_what_was_asked():
    pipe = ARL2Pipeline.from_pretrained("shapes-flow")
    assert set(pipe.transformer.config.layer_plan) == {"S"}
    assert pipe.settings.first_block_steps is None
    assert len(pipe.settings.steps) == 16
    blocks = list(pipe.stream("a red circle moves right on navy", seed=0, num_frames=9))
    assert_red_on_navy(blocks[-1].video[0, :, -1])
