"""Free-form prompts to requests: synonyms are understood, unknown words are ignored."""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch

from arl2.errors import Arl2Error
from arl2.shapes.prompts.captions import caption
from arl2.shapes.prompts.request import ATTRIBUTES, SceneRequest
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from arl2.shapes.world.scene import Scenes, sample_scenes

EXAMPLES = ("a red circle moves right behind a wall on navy", "a yellow ball bounces on black")

# Turns of phrase whose single words would mislead; replaced in this order, before words are looked up.
PHRASES = (
    (r"\b(no|without|not behind)( a| any| the)?( grey| gray)? walls?\b", "wall-less"),
    (r"\bleft (side )?to (the )?right\b", "rightwards"),
    (r"\bright (side )?to (the )?left\b", "leftwards"),
    (r"\b(top|up) to (the )?(bottom|down)\b", "downwards"),
    (r"\b(bottom|down) to (the )?(top|up)\b", "upwards"),
    (r"\bnavy blue\b|\bdark blue\b", "navy"),
    (r"\bclose up\b", "close-up"),
    (r"\bupside down\b", "upside-down"),
)

SYNONYMS = {
    "colour": {
        "red": "red crimson scarlet ruby",
        "green": "green emerald",
        "blue": "blue azure",
        "yellow": "yellow gold golden lemon",
        "purple": "purple violet lilac",
        "cyan": "cyan turquoise teal aqua",
    },
    "shape": {
        "circle": "circle circles circular ball balls disc discs disk disks dot dots round sphere",
        "square": "square squares box boxes cube cubes block blocks",
        "triangle": "triangle triangles triangular pyramid pyramids",
    },
    "motion": {
        "right": "right rightward rightwards eastward eastwards",
        "left": "left leftward leftwards westward westwards",
        "up": "up upward upwards rise rises rising climb climbs climbing ascends ascending",
        "down": "down downward downwards fall falls falling drops dropping sinks sinking descends descending",
        "bounce": "bounce bounces bounced bouncing ricochets ricocheting rebounds rebounding",
    },
    "background": {
        "black": "black",
        "white": "white",
        "navy": "navy",
        "beige": "beige cream sand tan",
    },
    "wall": {
        "with": "wall walls behind barrier pillar fence occluder",
        "without": "wall-less",
    },
}

MEANINGS = {
    word: (attribute, value)
    for attribute, values in SYNONYMS.items()
    for value, words in values.items()
    for word in words.split()
}

_NEGATION = re.compile(r"\b(?:not|no|never|without|except|(?:is|are|does|do)n['\u2019]t)\b")

# What an open attribute becomes in a prompt for a model whose captions always name it. The colour stays open.
PLAIN_SHAPE, PLAIN_MOTION, PLAIN_BACKGROUND = "circle", "right", "black"


class PromptError(Arl2Error):
    """A prompt that names nothing of this world, or two values for one attribute."""


def parse_prompt(prompt: str) -> SceneRequest:
    """What a free-form prompt requests.

    Raises:
        PromptError: The prompt names nothing that is known, or contradicts itself ("a red blue ball").
    """
    found = _named(prompt)
    examples = " or ".join(repr(example) for example in EXAMPLES)
    if not any(found.values()):
        said = f"The prompt {shortened(prompt)} names no" if prompt.strip() else "The prompt is empty and names no"
        raise PromptError(f"{said} colour, shape, motion, background or wall of this world; try {examples}.")
    for attribute, values in found.items():
        if len(values) > 1:
            raise PromptError(
                f"The prompt {shortened(prompt)} names more than one {attribute} ({', '.join(values)}); "
                f"keep one of them, as in {EXAMPLES[0]!r}.{_negated(prompt)}"
            )
    chosen = {attribute: values[0] if values else None for attribute, values in found.items()}
    wall = chosen.pop("wall")
    return SceneRequest(**chosen, wall=None if wall is None else wall == "with")


def _negated(prompt: str) -> str:
    """What an error adds about a prompt that says what it does not want."""
    if found := _NEGATION.search(prompt.lower()):
        return f" Negations ('{found[0]}') are not understood; say only what the video shows."
    return ""


def _named(prompt: str) -> dict[str, list[str]]:
    """By attribute, the values that a prompt names."""
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    for pattern, meaning in PHRASES:
        text = re.sub(pattern, meaning, text)
    found: dict[str, list[str]] = {attribute: [] for attribute in ATTRIBUTES}
    for word in text.split():
        if word in MEANINGS:
            attribute, value = MEANINGS[word]
            if value not in found[attribute]:
                found[attribute].append(value)
    return found


def complete(request: SceneRequest) -> SceneRequest:
    """The same request with a plain value for what is open: a circle, moving right, on black, without a wall.

    The colour stays as it is: captions may leave it out, and the model then chooses.
    """
    return SceneRequest(
        colour=request.colour,
        shape=request.shape or PLAIN_SHAPE,
        motion=request.motion or PLAIN_MOTION,
        background=request.background or PLAIN_BACKGROUND,
        wall=bool(request.wall),
    )


def canonical(prompt: str) -> str:
    """A free-form prompt as a caption of the grammar that names all but perhaps the colour.

    Raises:
        PromptError: As `parse_prompt`.
    """
    return caption(complete(parse_prompt(prompt)))


def understood(prompt: str) -> str:
    """As `canonical`, of anything: a text without one meaning gives the names it holds, or nothing."""
    try:
        return canonical(prompt)
    except PromptError:
        said = {"bounce": "bounces", "with": "wall", "without": ""}
        names = [said.get(value, value) for values in _named(prompt).values() for value in values]
        return " ".join(name for name in names if name)


def shortened(prompt: str) -> str:
    """A prompt as errors quote it, at most 60 characters of it."""
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")


def scenes_of_prompts(prompts: Sequence[str], *, seed: int) -> Scenes:
    """A scene for each prompt, the rest sampled from the seed: sizes, places, and a colour that the prompt leaves open.

    Raises:
        PromptError: a prompt that names nothing of this world, or contradicts itself.
    """
    requests = [complete(parse_prompt(prompt)) for prompt in prompts]
    scenes = sample_scenes(len(requests), seed=seed)
    chosen = {
        "shape": [SHAPES.index(str(request.shape)) for request in requests],
        "motion": [MOTIONS.index(str(request.motion)) for request in requests],
        "background": [tuple(BACKGROUNDS).index(str(request.background)) for request in requests],
        "wall": [bool(request.wall) for request in requests],
        "hides_colour": [request.colour is None for request in requests],
        "colour": [
            sampled if request.colour is None else tuple(COLOURS).index(request.colour)
            for request, sampled in zip(requests, scenes.colour.tolist(), strict=True)
        ],
    }
    return replace(scenes, **{name: torch.tensor(values) for name, values in chosen.items()})
