"""``arl2 sensitivity MODEL``: rank the layers of a teacher by how far a rollout moves without each softmax layer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console

from arl2.cli.checks import exclusive
from arl2.cli.options import Command
from arl2.cli.threads import use_threads
from arl2.errors import ConfigError
from arl2.files.places import check_place

if TYPE_CHECKING:
    from torch import Tensor

    from arl2.training.conversion.students import Teacher


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Command):
    """Rank the layers of a teacher, to choose which become hybrid.

    Puts aligned layers (of ``arl2 train align``) into the teacher one at a time and measures how far its rollouts
    move, noise and prompts being the same.

    Attributes:
        model: The teacher: a name that ``arl2 models`` lists, or the folder of a pipeline.
        aligned: Export of ``arl2 train align``.
        output: Ranking and plans, a .json.
        overwrite: Replace outputs that exist.
        plot: Chart with a bar for each layer, a .png.
        suggest: Number of hybrid layers in the suggested plan.
        keep: Layers that stay softmax, such as 0,29.
        prompts_file: Prompts, one a line (default: captions of the shapes world).
        clips: Folder of clips whose prompts are used.
        limit: Prompts to roll out.
        latent_frames: Length of a rollout in latent frames (default: two blocks).
        batch: Prompts sampled at once.
        seed: Random seed of the noise.
        device: Where to run: auto, cpu, cuda, cuda:1, xpu, mps (default: auto, a GPU if there is one).
        threads: CPU threads (default: all cores).
        as_json: Print the ranking as JSON.
    """

    positional: ClassVar = ("model",)
    examples: ClassVar = (
        "arl2 sensitivity shapes-teacher --aligned runs/align/export -o runs/sensitivity.json --suggest 3",
        "arl2 sensitivity mine --aligned runs/align/export --prompts-file prompts.txt -o ranking.json",
    )
    model: str
    aligned: str
    output: Path
    overwrite: bool = False
    plot: Path | None = None
    suggest: int | None = None
    keep: str | None = None
    prompts_file: Path | None = None
    clips: Path | None = None
    limit: int = 64
    latent_frames: int | None = None
    batch: int = 4
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        exclusive({"--prompts-file": self.prompts_file, "--clips": self.clips})

    def run(self) -> int:
        """Measure, write, report."""
        check_place(self.output, "JSON", overwrite=self.overwrite)
        if self.plot is not None:
            check_place(self.plot, "PNG", overwrite=self.overwrite)

        from arl2.attention.plan import converted_layers
        from arl2.checkpoints.describe import LATENT_STRIDE
        from arl2.checkpoints.layer_choice import parse_layers
        from arl2.pipeline.devices import checked_device
        from arl2.training.conversion.pictures import RolloutSpec
        from arl2.training.conversion.sensitivity import measure_sensitivity
        from arl2.training.conversion.students import load_teacher

        use_threads(self.threads)
        console = Console(stderr=True, highlight=False)
        teacher = load_teacher(self.model, device=checked_device(self.device))
        depth = len(teacher.model.config.layer_plan)
        keep = [] if self.keep is None else parse_layers(self.keep, depth)
        text = self._text(teacher)
        settings = teacher.settings
        # One block beyond the first, which no memory touches. Later two rollouts differ by what chance made of the
        # first difference, whichever layer it came from.
        block = teacher.model.config.block_frames
        frames = self.latent_frames or (settings.first_block_frames or block) + block
        spec = RolloutSpec(
            settings, settings.height // LATENT_STRIDE, settings.width // LATENT_STRIDE, frames, self.seed
        )
        found = measure_sensitivity(
            teacher,
            self.aligned,
            text.to(teacher.model.patch_embedding.weight.device),
            spec,
            batch=self.batch,
            tell=lambda layer, moved: console.print(f"layer {layer}: {moved:.4f}"),
        )
        result = {
            "model": self.model,
            "aligned": self.aligned,
            "prompts": len(text),
            "frames": frames,
            "seed": self.seed,
            "metric": "norm of the difference of rollout latents over the norm of the teacher's, mean over prompts",
            **found.to_mapping(keep=keep, count=self.suggest),
        }
        _write(self.output, json.dumps(result, indent=1) + "\n")
        if self.plot is not None:
            chosen = [] if self.suggest is None else converted_layers(result["suggested"])
            _plot(self.plot, found.distances, chosen)
        if self.as_json:
            print(json.dumps(result))
            return 0
        print(f"least sensitive first: {', '.join(map(str, found.ranking))}")
        if self.suggest is not None:
            print(f"suggested plan with {self.suggest} hybrid layers: {result['suggested']}")
        return 0

    def _text(self, teacher: "Teacher") -> "Tensor":
        """Prompt embeddings of what the options name."""
        from arl2.pipeline.folder import load_text
        from arl2.serving.prompts_file import read_prompts_file
        from arl2.shapes.prompts.text import ShapesText
        from arl2.shapes.training.clip_source import PromptedScenes
        from arl2.training.clips.dataset import ClipSet
        from arl2.training.clips.sources import embed

        if self.clips is not None:
            clips = ClipSet.open(self.clips)
            return clips.batch(range(min(self.limit, len(clips))))[1]
        text = load_text(teacher.folder)
        if self.prompts_file is not None:
            prompts = [request.prompt for request in read_prompts_file(self.prompts_file)][: self.limit]
        elif isinstance(text, ShapesText):
            # From a seed that no training uses.
            prompts = [prompt.caption for prompt in PromptedScenes.sample(self.limit, seed=2**40 + 4).prompts]
        else:
            raise ConfigError("This model needs prompts of yours: give --prompts-file FILE or --clips FOLDER.")
        return embed(text, prompts).float()


def _plot(path: Path, distances: Mapping[int, float], chosen: list[int]) -> None:
    from arl2.training.conversion.bar_chart import bar_chart

    try:
        bar_chart(
            [(str(layer), distances[layer]) for layer in sorted(distances)],
            title="How far a rollout moves with this layer hybrid (of the teacher's norm)",
            marked=[str(layer) for layer in chosen],
            path=path,
        )
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error}); give another place.") from error


def _write(path: Path, content: str) -> None:
    from arl2.files.atomic import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error}); give another place.") from error
