"""What a caption or prompt requests: one value for each attribute, or none where it is left open."""

from dataclasses import dataclass

from arl2.errors import Arl2Error
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from arl2.shapes.world.scene import Scenes

ATTRIBUTES = ("colour", "shape", "motion", "background", "wall")


@dataclass(frozen=True, kw_only=True)
class SceneRequest:
    """The meaning of a caption. `None` leaves an attribute open; `wall=False` requests a scene without one."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    background: str | None = None
    wall: bool | None = None

    def __post_init__(self) -> None:
        for attribute, known in (
            ("colour", tuple(COLOURS)),
            ("shape", SHAPES),
            ("motion", MOTIONS),
            ("background", tuple(BACKGROUNDS)),
        ):
            value = getattr(self, attribute)
            if value is not None and value not in known:
                raise Arl2Error(f"The {attribute} {value!r} is not of this world; use {', '.join(known)}.")


def requests_of(scenes: Scenes) -> list[SceneRequest]:
    """What the captions of the scenes request; the colour is open where the caption leaves it out."""
    colours, backgrounds = tuple(COLOURS), tuple(BACKGROUNDS)
    return [
        SceneRequest(
            colour=None if hides else colours[colour],
            shape=SHAPES[shape],
            motion=MOTIONS[motion],
            background=backgrounds[background],
            wall=wall,
        )
        for colour, hides, shape, motion, background, wall in zip(
            scenes.colour.tolist(),
            scenes.hides_colour.tolist(),
            scenes.shape.tolist(),
            scenes.motion.tolist(),
            scenes.background.tolist(),
            scenes.wall.tolist(),
            strict=True,
        )
    ]
