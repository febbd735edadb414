"""What the shapes world adds to the rest of the package: models, codec, text part, training tasks.

Loaded by :mod:`arl2.extensions`, as any other package's extension would be; it imports nothing large.
"""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from arl2.evaluation.suites.registry import PromptSet, register_prompts, register_suite
from arl2.model.registry import ModelCard, register_card
from arl2.model.settings import GenerationSettings
from arl2.pipeline.registry import register_codec, register_model, register_text
from arl2.training.engine.registry import TrainingTask, register_task, register_variant

WEIGHTS = Path(str(files("arl2.shapes"))) / "weights"
# By model: the folder of its transformer in WEIGHTS. What it lacks is the teacher's, which lies in WEIGHTS itself.
FOLDERS = {
    "shapes": "",
    "shapes-100": "hybrid-100",
    "shapes-75": "hybrid-75",
    "shapes-50": "hybrid-50",
    "shapes-flow": "flow",
    "shapes-teacher": "",
}
DEFAULT_MODEL = "shapes-100"

_SETTINGS = GenerationSettings(
    steps=(1000, 654, 333, 152),
    # Dense where it is decided what a block shows; fresh noise at higher timesteps is another chance to lose it.
    first_block_steps=(1000, 875, 792, 708, 666, 625, 583, 542, 500, 458, 417, 375, 292, 208, 125, 42),
    first_block_candidates=6,
    shift=3.0,
    window=21,
    height=64,
    width=64,
)

_SHAPES = ModelCard(
    name="shapes",
    summary="Small coloured shapes that move, 64 x 64 pixels: the softmax model that ships with the package.",
    kind="embedded",
    base=None,
    preset=None,
    settings=_SETTINGS,
    licence="Apache-2.0",
    disk_bytes=0,
    device_bytes=500_000_000,
    memory_note="most of it Python and torch themselves",
    examples=(
        "a red circle moves right on navy",
        "a blue square bounces on beige",
        "a yellow triangle moves up on black",
        "a green circle moves left behind a wall on white",
        "a purple square moves down on navy",
        "a cyan triangle bounces on black",
    ),
)

_SHAPES_75 = replace(
    _SHAPES,
    name="shapes-75",
    summary="Converted from it: three of four layers hybrid as published, the fourth sees three blocks.",
    settings=replace(_SETTINGS, window=9),
)

CARDS = (
    _SHAPES,
    _SHAPES_75,
    replace(
        _SHAPES_75,
        name="shapes-100",
        summary="A memory in all four layers: remembers what three blocks do not show, keeps going in long streams.",
    ),
    replace(_SHAPES_75, name="shapes-50", summary="Converted from shapes: two of four layers hybrid as published."),
    replace(
        _SHAPES,
        name="shapes-flow",
        summary="The real-score model that shapes was distilled from (DMD): many denoising steps.",
        settings=replace(_SETTINGS.with_steps(16), first_block_candidates=1),
    ),
    replace(_SHAPES, name="shapes-teacher", summary="The same as shapes, under the name that conversion recipes use."),
)

_TRAINING, _SUITES = "arl2.shapes.training", "arl2.shapes.evaluation.suites"
TASKS = (
    TrainingTask(
        "codec",
        "the codec of the shapes world: pixels to latents and back, on rendered clips",
        f"{_TRAINING}.codec:CodecConfig",
        f"{_TRAINING}.codec:CodecTask",
    ),
    TrainingTask(
        "teacher",
        "the transformer and text part of the shapes world, on latents of a trained codec (give codec=FOLDER)",
        f"{_TRAINING}.teacher:TeacherConfig",
        f"{_TRAINING}.teacher:TeacherTask",
    ),
)


def register() -> None:
    """Add all of it to the registries."""
    for card in CARDS:
        register_card(card)
    for name, folder in FOLDERS.items():
        register_model(name, WEIGHTS / folder, shared=WEIGHTS, default=name == DEFAULT_MODEL)
    register_codec("GroupCodec", "arl2.shapes.codec:GroupCodec")
    register_text("shapes", "arl2.shapes.prompts.text:ShapesText")
    register_suite("shapes", f"{_SUITES}.prompted:ShapesSuite")
    register_suite("memory", f"{_SUITES}.memory:MemorySuite")
    register_prompts("shapes", PromptSet(f"{_SUITES}.prompted:captions", "arl2.shapes.prompts.text:ShapesText"))
    for task in TASKS:
        register_task(task)
    register_task(
        TrainingTask(
            "reward-model",
            "the reward model of best-of-N: scores first blocks by their prompts (give drawn=FOLDER of a model's own)",
            f"{_TRAINING}.reward_model:RewardModelConfig",
            f"{_TRAINING}.reward_model:RewardModelTask",
        ),
        formerly=("verifier",),
    )
    register_variant(
        "codec",
        TrainingTask(
            "dmd",
            "the same on scenes of the shapes world, text part included (give codec=FOLDER and start_from=FOLDER)",
            f"{_TRAINING}.dmd:SceneDmdConfig",
            f"{_TRAINING}.dmd:SceneDmdTask",
        ),
    )
