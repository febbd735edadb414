"""``arl2 shapes sample | render | score``: look at the shapes world, and score videos of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from arl2.cli.checks import exclusive, only_models
from arl2.cli.loading import load_pipeline
from arl2.cli.options import Command, Only
from arl2.cli.threads import use_threads
from arl2.errors import ConfigError
from arl2.pipeline.options import ModelSource, SamplingOptions


@dataclass(frozen=True, kw_only=True)
class Sample(Command):
    """Print captions of random scenes.

    Attributes:
        count: Scenes.
        sheet: Contact sheet of their true videos, a .png.
        overwrite: Replace a contact sheet that exists.
        seed: Random seed of the scenes.
        threads: CPU threads (default: all cores).
    """

    examples: ClassVar = ("arl2 shapes sample --count 20", "arl2 shapes sample --seed 3 --sheet scenes.png")
    count: int = 8
    sheet: Path | None = None
    overwrite: bool = False
    seed: int = 0
    threads: int | None = None

    def run(self) -> int:
        """Print, a batch at a time, so that any count takes the same memory."""
        from arl2.shapes.prompts.captions import captions_of
        from arl2.shapes.world.renderer import render
        from arl2.shapes.world.scene import sample_scenes
        from arl2.video.formats import check_file
        from arl2.video.pixels import to_bytes
        from arl2.video.sheet import contact_sheet

        if self.sheet is not None:
            check_file(self.sheet, ".png", overwrite=self.overwrite)
        use_threads(self.threads)
        scenes = sample_scenes(self.count, seed=self.seed)
        captions = captions_of(scenes)
        for number, caption in enumerate(captions):
            print(f"{number:3d}  {caption}")
        if self.sheet is not None:
            clips = [
                (caption, to_bytes(render(scenes.select([number]), 81)[0, :, ::7]))
                for number, caption in enumerate(captions)
            ]
            contact_sheet(clips, every=1, scale=2, path=self.sheet)
            print(f"wrote {self.sheet}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Render(Command):
    """Draw true videos of the shapes world, without any model.

    Attributes:
        captions: Scenes to render, in free words.
        count: Random scenes to render, instead of captions.
        output: Folder of the videos.
        overwrite: Replace videos that exist.
        num_frames: Video frames of each video.
        format: Format of the files.
        scale: Factor that enlarges every pixel.
        seed: Random seed of what captions leave open, or of the scenes.
        threads: CPU threads (default: all cores).
    """

    positional: ClassVar = ("captions",)
    examples: ClassVar = (
        'arl2 shapes render "a yellow square moves down behind a wall on beige" -o truth',
        "arl2 shapes render --count 20 --frames 161 --format gif -o truth",
    )
    captions: tuple[str, ...] = ()
    count: int | None = None
    output: Path
    overwrite: bool = False
    num_frames: int = 81
    format: Literal["mp4", "gif", "webp"] = "mp4"
    scale: int = 4
    seed: int = 0
    threads: int | None = None

    def run(self) -> int:
        """Draw and write."""
        from arl2.serving.file_names import file_name
        from arl2.serving.manifest import write_listing
        from arl2.shapes.prompts.captions import captions_of
        from arl2.shapes.prompts.parser import scenes_of_prompts
        from arl2.shapes.prompts.unknown import check_words, warn
        from arl2.shapes.world.renderer import render
        from arl2.shapes.world.scene import sample_scenes
        from arl2.video.formats import check_writable
        from arl2.video.pixels import to_bytes
        from arl2.video.writers import open_video

        if bool(self.captions) == (self.count is not None):
            raise ConfigError("Give either captions to render or --count N for random scenes.")
        use_threads(self.threads)
        if self.count is None:
            # What a model refuses to draw is not drawn here as something else.
            told = [check_words(caption) for caption in self.captions]
            captions, scenes = list(self.captions), scenes_of_prompts(self.captions, seed=self.seed)
            for sentence in dict.fromkeys(filter(None, told)):
                warn(sentence)
        else:
            scenes = sample_scenes(self.count, seed=self.seed)
            captions = captions_of(scenes)
        names = [file_name(number, caption, f".{self.format}") for number, caption in enumerate(captions)]
        for name in names:
            check_writable(self.output / name, overwrite=self.overwrite)
        entries = []
        for number, (name, caption) in enumerate(zip(names, captions, strict=True)):
            facts = {"prompt": caption, "rendered": True, "seed": self.seed, "num_frames": self.num_frames}
            with open_video(self.output / name, scale=self.scale, settings=facts) as writer:
                # A second at a time, so that any length takes the same memory.
                for start in range(0, self.num_frames, 16):
                    frames = min(16, self.num_frames - start)
                    writer.write(to_bytes(render(scenes.select([number]), frames, start=start)[0]))
            entries.append({"file": name, **facts})
            print(f"{name}  {caption}")
        write_listing(self.output, entries)
        print(f"wrote {len(names)} videos and manifest.jsonl to {self.output}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Score(Command):
    """Score a folder of videos, or a model: the share of videos that show what was asked, with 95 % intervals (Wilson).

    A folder's prompts come from manifest.jsonl, the files that arl2 wrote, or their names (PROMPT-0.mp4); a model
    generates the fixed prompts of the seed.

    Attributes:
        folder: Folder of videos, or of folders of PNGs.
        count: Prompts that the model generates (default: 200).
        occlusion: Video frames of the memory test: true clips are continued from behind an occluder that hides the
            object for so long or longer, with the colour left out of the caption.
        walls: Occluders of the memory test: standing (up to about 10 video frames), or moving (any length).
        threads: CPU threads (default: 1 for small models, else all cores).
        as_json: Print one JSON line instead of tables.
    """

    positional: ClassVar = ("folder",)
    examples: ClassVar = (
        "arl2 shapes score truth --json",
        "arl2 shapes score --model shapes-100 --count 200 --frames 81 --seed 0",
    )
    folder: Path | None = None
    count: int | None = None
    occlusion: int | None = None
    walls: Literal["standing", "moving"] = "standing"
    threads: int | None = None
    as_json: bool = False
    sampling: Annotated[SamplingOptions, Only("num_frames", "seed", "steps", "first_block_candidates", "window")] = (
        field(default_factory=SamplingOptions)
    )
    source: Annotated[
        ModelSource, Only("model", "weights", "base", "config", "weights_branch", "lora_alpha", "dtype", "device")
    ] = field(default_factory=ModelSource)

    def run(self) -> int:
        """Score and print."""
        from arl2.cli.score_report import folder_report, model_report, print_report

        of_model = self.source.model is not None or self.source.weights is not None
        if self.folder is None and not of_model:
            raise ConfigError("Give either a folder of videos or --model NAME.")
        exclusive({"a folder of videos": self.folder, "--model": of_model})
        if self.folder is not None:
            if self.count is not None:
                raise ConfigError("--count goes with a model; a folder of videos is scored whole.")
            only_models(self.sampling)
            use_threads(self.threads)
            report = folder_report(self.folder, quiet=self.as_json)
        else:
            report = model_report(
                load_pipeline(self.source, self.sampling, threads=self.threads),
                name=self.source.name,
                count=200 if self.count is None else self.count,
                num_frames=self.sampling.num_frames or 81,
                seed=int(self.sampling.seed or 0),  # type: ignore[arg-type]  # the command line gives one
                occlusion=self.occlusion,
                walls=self.walls,
                sampled={
                    "steps": self.sampling.steps,
                    "first_block_candidates": self.sampling.first_block_candidates,
                    "window": self.sampling.window,
                },
                quiet=self.as_json,
            )
        if self.as_json:
            print(json.dumps(report))
        else:
            print_report(report)
        return 0
