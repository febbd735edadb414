"""``arl2 eval MODEL|VIDEOS... --suite NAME``: models and folders of videos on the same prompts and seeds."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from rich.console import Console
from rich.table import Table

from arl2.cli.checks import check_source, check_there, only_models
from arl2.cli.options import Command, Only, steps, whole, window
from arl2.cli.standard_streams import say_error
from arl2.cli.threads import use_threads
from arl2.cli.usage import LiveProgress
from arl2.errors import ConfigError, suggestion
from arl2.evaluation.suites.endings import READ
from arl2.evaluation.suites.registry import SUITES, open_suite
from arl2.files.places import check_place
from arl2.files.plain import WEIGHT_SUFFIXES
from arl2.pipeline.options import ModelSource, SamplingOptions

if TYPE_CHECKING:
    from arl2.evaluation.suites.suite import Subject, Suite
    from arl2.evaluation.suites.summary import Results

_TRUTH = "true-renders"
_GROUPS = 30  # of what is left out; the report has all
# What may follow a model's name, and how it is read.
_OWN = {
    "window": ("window", window),
    "steps": ("steps", steps),
    "candidates": ("first_block_candidates", whole(1)),
}
# A folder with one of these is a model.
_OF_MODELS = ("model_index.json", "generation.json", "transformer", "*.safetensors", "*.pt")


@dataclass(frozen=True, kw_only=True)
class Eval(Command):
    """Evaluate models and folders of videos on the same prompts and seeds.

    Writes results.json, report.md and report.html (plots, filmstrips side by side, worst cases first; one file that
    needs nothing else) into a folder. All are compared with the first one, pair by pair, with 95 % intervals. Re-run
    the command to resume; the same command gives the same results.

    A model is a name that ``arl2 models`` lists, or a folder; NAME:window=9 (also steps, candidates) is the same model
    with another setting. A folder of videos, of any system, has its prompts in manifest.jsonl ("file", "prompt",
    "seed"), in the files that arl2 wrote, or as names (PROMPT-0.mp4). The word true-renders stands for a perfect model.

    Attributes:
        subjects: Models and folders of videos.
        suite: What is measured: video (any video), shapes (prompts of the shapes world), memory (after occlusions),
            teacher (distance from a teacher, block by block), vbench (VBench's own dimensions, with its package), or
            one of an extension.
        output: Folder of the results (default: eval-SUITE).
        overwrite: Replace another evaluation that is there.
        prompts_file: Prompts, one a line (.txt) or as objects (.jsonl) (default: those of the folders of videos, else
            captions of the shapes world).
        count: Prompts, or clips of each length, where none are given (default: 200).
        seeds: Noise seeds for each prompt (default: 1, or those of the folders of videos).
        teacher: Model that --suite teacher compares with.
        hidden: Lengths of occlusions of --suite memory, in video frames (default: 24,48,96,192).
        batch: Videos generated together. Another number gives slightly different videos.
        processes: Processes that work at the same time.
        threads: CPU threads of each process (default: 1).
        as_json: Print the means as one JSON line.
    """

    positional: ClassVar = ("subjects",)
    light: ClassVar = True
    examples: ClassVar = (
        "arl2 eval shapes shapes:window=9 shapes-100 true-renders --suite shapes --count 200 --seeds 3 -o runs/eval",
        "arl2 eval their-videos my-videos --suite video -o runs/compared",
        "arl2 eval shapes-100 shapes-75 --suite teacher --teacher shapes --count 16 -o runs/teacher",
    )
    subjects: tuple[str, ...] = ()
    suite: str = "video"
    output: Path | None = None
    overwrite: bool = False
    prompts_file: Path | None = None
    count: int | None = None
    seeds: int | None = None
    teacher: str | None = None
    hidden: str | None = None
    batch: int = 16
    processes: int = 1
    threads: int | None = None
    as_json: bool = False
    sampling: Annotated[SamplingOptions, Only("num_frames", "seed", "steps", "first_block_candidates", "window")] = (
        field(default_factory=SamplingOptions)
    )
    source: Annotated[ModelSource, Only("dtype", "device")] = field(default_factory=ModelSource)

    def run(self) -> int:
        """Evaluate what is left, write and print; 130 if it was interrupted."""
        SUITES.find(self.suite)
        if not self.subjects:
            raise ConfigError("Give models or folders of videos: arl2 eval MODEL|VIDEOS... --suite NAME.")
        check_there({"--prompts-file": self.prompts_file})
        kinds = [self._kind(word) for word in self.subjects]
        if self.teacher is not None:
            self._kind(self.teacher)
        self._refuse_unused(kinds)
        hidden = _lengths(self.hidden)
        output = self.output or Path(f"eval-{self.suite}")

        from arl2.evaluation.report.writing import write_results
        from arl2.evaluation.suites.evaluate import evaluate, is_evaluation
        from arl2.evaluation.suites.plan import make_plan
        from arl2.evaluation.suites.suite import SuiteOptions

        check_place(output, "results", folder=True, added_to=is_evaluation(output))
        use_threads(self.threads or 1)
        suite = open_suite(self.suite)
        options = SuiteOptions(
            prompts=self._prompts(suite),
            count=200 if self.count is None else self.count,
            num_frames=self.sampling.num_frames,
            seed=int(self.sampling.seed or 0),  # type: ignore[arg-type]  # the command line gives one
            seeds=1 if self.seeds is None else self.seeds,
            hidden=hidden,
            teacher=None if self.teacher is None else self._subject(self.teacher, "model"),
        )
        plan = make_plan(
            suite,
            [self._subject(word, kind) for word, kind in zip(self.subjects, kinds, strict=True)],
            options,
            batch=self.batch,
            device=self.source.device or "cpu",
            dtype=self.source.dtype,
        )
        videos = [0]
        for unit in plan.units:
            videos.append(videos[-1] + len(unit.items))
        done = 0

        def shown(units: int) -> None:
            nonlocal done
            done = units
            live.show(videos[units])

        try:
            with LiveProgress("video", videos[-1], quiet=self.as_json) as live:
                results = evaluate(
                    plan,
                    output,
                    processes=self.processes,
                    threads=self.threads or 1,
                    overwrite=self.overwrite,
                    on_unit=shown,
                )
        except KeyboardInterrupt:
            say_error(
                f"arl2 eval: interrupted; {done} of {len(plan.units)} parts are in '{output}'. Re-run the command to "
                "resume."
            )
            return 130
        write_results(results, output)
        if self.as_json:
            print(json.dumps({name: value for name, value in results.to_mapping().items() if name != "videos"}))
        else:
            _print(results)
            print(f"wrote {output / 'report.html'}, report.md and results.json")
        return 0

    def _refuse_unused(self, kinds: list[str]) -> None:
        """Options that would change nothing."""
        if "videos" in kinds and self.prompts_file is None:
            for name, value in (("--count", self.count), ("--seeds", self.seeds)):
                if value is not None:
                    raise ConfigError(
                        f"Folders of videos say their prompts and seeds; leave {name} out, or give --prompts-file."
                    )
        if self.count is not None and self.prompts_file is not None:
            raise ConfigError("--count goes without prompts of yours; leave it or --prompts-file out.")
        if set(kinds) == {"videos"}:
            only_models(self.sampling)

    def _kind(self, word: str) -> str:
        """Of a subject: truth, videos or model; errors as for ``check_source``."""
        if word == _TRUTH:
            return "truth"
        path = Path(word)
        if path.is_dir() and not any(any(path.glob(name)) for name in _OF_MODELS):
            return "videos"
        if path.is_file() and path.suffix.lower() in READ:
            raise ConfigError(f"'{word}' is one video; give its folder, or use arl2 compare for two videos.")
        if path.is_file() and path.suffix.lower() not in WEIGHT_SUFFIXES:
            raise ConfigError(
                f"'{word}' is neither a model nor a folder of videos; give a folder of videos, a name that 'arl2 "
                "models' lists, or a model's folder."
            )
        name, _ = _named(word)
        check_source(ModelSource(model=name))
        return "model"

    def _subject(self, word: str, kind: str) -> "Subject":
        from arl2.evaluation.suites.folder import folder_subject
        from arl2.evaluation.suites.suite import Subject

        if kind == "truth":
            return Subject(word, "truth", word)
        if kind == "videos":
            names = [Path(one).name for one in self.subjects]
            return folder_subject(Path(word), Path(word).name if names.count(Path(word).name) == 1 else str(Path(word)))
        name, own = _named(word)
        common = {one: getattr(self.sampling, one) for one in ("steps", "first_block_candidates") if one not in own}
        values: dict[str, Any] = {"window": self.sampling.window, **common, **own}
        return Subject(word, "model", name, SamplingOptions(**values))

    def _prompts(self, suite: "Suite") -> tuple[tuple[str, int | None], ...]:
        from arl2.serving.prompts_file import read_prompts_file

        if self.prompts_file is None:
            return ()
        found = read_prompts_file(self.prompts_file)
        for one in found:
            for name, value in (("frames", one.frames), ("image", one.image), ("video", one.video)):
                if value is not None:
                    raise ConfigError(f"{one.where}: '{name}' means nothing for eval; take it out.")
            if suite.has_prompts and (refusal := suite.refusal(one.prompt)):
                raise ConfigError(f"{one.where}: {refusal}")
        return tuple((one.prompt, one.seed) for one in found)


def _named(word: str) -> tuple[str, dict[str, Any]]:
    """A model's name and what follows it: ``shapes:window=9:steps=4``."""
    parts = word.split(":")
    own: dict[str, Any] = {}
    while len(parts) > 1 and "=" in parts[-1]:
        name, _, value = parts.pop().partition("=")
        if name not in _OWN:
            raise ConfigError(f"'{word}': there is no setting '{name}' of a model. {suggestion(name, _OWN)}")
        field_name, read = _OWN[name]
        try:
            own[field_name] = read(value)
        except ValueError as error:
            raise ConfigError(f"'{word}', {name}: {error}.") from error
    return ":".join(parts), own


def _lengths(words: str | None) -> tuple[int, ...]:
    if words is None:
        return ()
    try:
        found = tuple(whole(1)(word) for word in words.split(",") if word.strip())
    except ValueError as error:
        raise ConfigError(f"Option '--hidden': {error}, or several such as 24,48,96.") from error
    if not found:
        raise ConfigError("Option '--hidden' takes numbers of video frames, such as 24,48,96.")
    return tuple(sorted(set(found)))


def _print(results: "Results") -> None:
    from arl2.evaluation.report.table import with_interval

    # Names and prompts are no markup.
    console = Console(highlight=False, markup=False, emoji=False, width=max(100, 34 + 30 * len(results.labels)))
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for label in results.labels:
        table.add_column(label, justify="right")
    for metric in results.metrics:
        cells = []
        for label in results.labels:
            found = results.means[label].get(metric.name)
            cells.append("-" if found is None else with_interval(found, metric))
        table.add_row(metric.name, *cells)
    if results.metrics:
        console.print(table)
    for note in results.notes:
        console.print(note, soft_wrap=True)
    groups = results.left_out
    if groups:
        console.print("Left out of the means:")
    for group in groups[:_GROUPS]:
        console.print(f"  {group.line}", soft_wrap=True)
    if len(groups) > _GROUPS:
        console.print(f"  {len(groups) - _GROUPS} more groups are in report.md.")
