"""One plain scene, changed as a test likes."""

from collections.abc import Callable

import pytest
import torch

from arl2.shapes.world.scene import Scenes


def _one_scene(**changed: float | bool) -> Scenes:
    values = {
        "colour": 0,
        "shape": 0,
        "background": 0,
        "motion": 0,
        "wall": False,
        "hides_colour": False,
        "radius": 10.0,
        "speed": 1.0,
        "place_x": 0.0,
        "place_y": 0.5,
        "wall_centre": 32.0,
        "wall_width": 26.0,
        "wall_speed": 0.0,
    }
    return Scenes(**{name: torch.tensor([value]) for name, value in (values | changed).items()})


@pytest.fixture(scope="session")
def one_scene() -> Callable[..., Scenes]:
    """A red circle of radius 10 that enters at the left edge at 1 pixel a video frame, half way down, on black."""
    return _one_scene
