"""What clients are told of a model."""

from arl2.errors import Arl2Error
from arl2.model.registry import find_card
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.serving.web.settings import ModelFacts


def facts_of(pipe: ARL2Pipeline, name: str) -> ModelFacts:
    """The facts of a loaded model.

    Args:
        pipe: the model.
        name: as the user named it; of a name that has a card, the facts have its example prompts.
    """
    settings = pipe.settings
    frames = pipe.block_frames * pipe.codec.temporal_factor
    try:
        examples = find_card(name).examples
    except Arl2Error:  # a path
        examples = ()
    return ModelFacts(
        name=name,
        width=settings.width,
        height=settings.height,
        fps=settings.fps,
        block_seconds=frames / settings.fps,
        mode=settings.prompt_change,
        examples=examples,
    )
