"""Named models: cards that agree with each other, with the presets and with what ships."""

import dataclasses

import pytest

from arl2.errors import ConfigError
from arl2.model.presets import PRESETS
from arl2.model.registry import CARDS, find_card


def test_the_names():
    assert set(CARDS) == {
        "shapes",
        "shapes-50",
        "shapes-75",
        "shapes-100",
        "shapes-flow",
        "shapes-teacher",
        "causal-forcing",
        "causal-forcing-framewise",
        "causal-forcing-2step",
        "causal-forcing-1step",
        "causal-forcing-long",
        "self-forcing",
        "wan2.1-1.3b",
        "arl2",
    }


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_whole(name):
    card = find_card(name)
    assert card.name == name
    assert card.preset is None or card.preset in PRESETS
    assert (card.base is None) == (card.kind == "embedded")
    assert (card.disk_bytes > 0) == (card.base is not None)
    # A file lies in a repository; a student has one.
    assert card.weights_file is None or card.weights_repo is not None
    assert (card.weights_file is not None) == (card.kind == "ar student")
    # Few steps, or a solver with guidance; never both.
    multi_step = card.kind == "multi-step"
    assert (card.settings.solver != "few-step") == (card.settings.guidance_scale != 1) == multi_step
    assert bool(card.settings.negative_prompt) == multi_step
    assert card.needs_base_transformer == multi_step
    assert card.sink == 0 or card.settings.window is not None
    assert all(result.source for result in card.results)


def test_files_of_the_students():
    """Spec 2's table of checkpoints."""
    files = {name: (card.weights_repo, card.weights_file) for name, card in CARDS.items() if card.weights_file}
    assert files == {
        "causal-forcing": ("zhuhz22/Causal-Forcing", "chunkwise/causal_forcing.pt"),
        "causal-forcing-framewise": ("zhuhz22/Causal-Forcing", "framewise/causal_forcing.pt"),
        "causal-forcing-2step": ("zhuhz22/Causal-Forcing", "causal-forcing++/framewise-2step.pt"),
        "causal-forcing-1step": ("zhuhz22/Causal-Forcing", "causal-forcing++/framewise-1step.pt"),
        "causal-forcing-long": ("zhuhz22/Causal-Forcing", "chunkwise/longvideo.pt"),
        "self-forcing": ("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt"),
    }


def test_only_framewise_models_start_from_an_image():
    assert {card.block_frames for card in CARDS.values() if card.image_to_video} == {1}
    assert {card.block_frames for card in CARDS.values() if not card.image_to_video} == {3}


def test_a_name_that_is_not_there():
    with pytest.raises(
        ConfigError, match=r"no model named 'causal-forcing-2-step'\. Did you mean 'causal-forcing-2step'"
    ):
        find_card("causal-forcing-2-step")
    with pytest.raises(ConfigError, match="Accepted: shapes, "):
        find_card("zzz")


def test_cards_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_card("shapes").settings = None
    with pytest.raises(TypeError):
        CARDS["other"] = find_card("shapes")
