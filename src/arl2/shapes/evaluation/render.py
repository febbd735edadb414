"""True scenes for what people ask for: the reference that models are compared with."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from arl2.shapes.prompts.parser import complete, parse_prompt
from arl2.shapes.world.palette import BACKGROUNDS, COLOURS, MOTIONS, SHAPES
from arl2.shapes.world.scene import Scenes, sample_scenes


def scenes_of_prompts(prompts: Sequence[str], *, seed: int) -> Scenes:
    """A scene for each prompt: what it names as named, what a caption must name with its plain value, sizes and places
    drawn from the seed. A colour that is left open is drawn too, and the caption hides it.

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
            drawn if request.colour is None else tuple(COLOURS).index(request.colour)
            for request, drawn in zip(requests, scenes.colour.tolist(), strict=True)
        ],
    }
    return replace(scenes, **{name: torch.tensor(values) for name, values in chosen.items()})
