"""The caption grammar: every attribute has its place in the sentence, and a few ways of saying it."""

from arl2.errors import Arl2Error
from arl2.shapes.prompts.request import SceneRequest, requests_of
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from arl2.shapes.world.scene import Scenes

ARTICLES = ("a", "the", "one")
MOVING = ("moves {}", "goes {}", "is moving {}")
BOUNCING = ("bounces", "bounces around", "is bouncing")
WALLS = ("behind a wall", "behind a grey wall", "with a wall in front")
GROUNDS = ("on {}", "over {}", "on a {} background")
UNNAMED_SHAPE = "thing"

PARAPHRASES = len(ARTICLES) * len(MOVING) * len(WALLS) * len(GROUNDS)


def caption(request: SceneRequest, paraphrase: int = 0) -> str:
    """The sentence that asks for `request`; attributes left open are left out.

    Args:
        request: What to ask for. Without a shape the noun is "thing".
        paraphrase: Which way of saying it, 0 to `PARAPHRASES - 1`; 0 is the canonical caption.

    Raises:
        Arl2Error: A paraphrase outside that range.
    """
    if not 0 <= paraphrase < PARAPHRASES:
        raise Arl2Error(f"There is no paraphrase {paraphrase}; give 0 to {PARAPHRASES - 1}.")
    rest, article = divmod(paraphrase, len(ARTICLES))
    rest, moving = divmod(rest, len(MOVING))
    ground, wall = divmod(rest, len(WALLS))
    parts = [ARTICLES[article], request.colour, request.shape or UNNAMED_SHAPE]
    if request.motion is not None:
        parts.append(BOUNCING[moving] if request.motion == "bounce" else MOVING[moving].format(request.motion))
    if request.wall:
        parts.append(WALLS[wall])
    if request.background is not None:
        parts.append(GROUNDS[ground].format(request.background))
    return " ".join(part for part in parts if part)


def captions_of(scenes: Scenes, paraphrases: list[int] | None = None) -> list[str]:
    """One caption for each scene, canonical unless a list says which paraphrase each gets.

    Raises:
        Arl2Error: A list of another length than there are scenes, or a paraphrase that does not exist.
    """
    chosen = [0] * len(scenes) if paraphrases is None else paraphrases
    if len(chosen) != len(scenes):
        raise Arl2Error(f"Got {len(chosen)} paraphrases for {len(scenes)} scenes; give one each.")
    return [caption(request, which) for request, which in zip(requests_of(scenes), chosen, strict=True)]


def _vocabulary() -> tuple[str, ...]:
    sayings = (*ARTICLES, *MOVING, *BOUNCING, *WALLS, *GROUNDS, UNNAMED_SHAPE)
    names = (*COLOURS, *SHAPES, *(motion for motion in MOTIONS if motion != "bounce"), *BACKGROUNDS)
    words = [word for saying in sayings for word in saying.split() if word != "{}"]
    return tuple(dict.fromkeys((*words, *names)))


VOCABULARY = _vocabulary()
"""Every word that a caption can hold, once each, in a fixed order."""

LONGEST_CAPTION = max(
    len(caption(SceneRequest(colour="red", shape="circle", motion=motion, background="navy", wall=True), which).split())
    for which in range(PARAPHRASES)
    for motion in ("right", "bounce")
)
"""Words in the longest caption."""
