"""What a suite is: items to measure, the metrics it gives, and how one video, or one batch of a model, is measured."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from arl2.errors import ConfigError
from arl2.streams.options import SamplingOptions

if TYPE_CHECKING:
    from arl2.pipeline.pipeline import ARL2Pipeline

Better = Literal["high", "low", "neither"]
# Seeds of noise of one prompt are this far apart: prompt ``i`` has ``seed + i``, and no two of them meet.
SEED_STRIDE = 1 << 20
TRUTH = "truth"


@dataclass(frozen=True)
class Metric:
    """One figure of a video.

    Attributes:
        name: in results. A name ``colour@24`` is the point 24 of the curve ``colour``.
        what: in words, with its unit.
        better: which direction is.
        across: of a curve: what its numbers are.
        is_share: of 0 and 1: its mean is a share of the videos.
    """

    name: str
    what: str
    better: Better = "neither"
    across: str | None = None
    is_share: bool = False


@dataclass(frozen=True)
class Item:
    """One thing that every subject is measured on.

    Attributes:
        key: what it is, seeds aside; equal keys and replicates of two subjects are a pair.
        prompt: of the video; empty where none is known.
        seed: of the noise.
        replicate: number of the noise seed, from 0.
        number: of the prompt or clip, from 0.
        length: of a suite with several lengths (memory: occluded video frames); 0 elsewhere.
    """

    key: str
    prompt: str
    seed: int
    replicate: int
    number: int
    length: int = 0


@dataclass(frozen=True)
class VideoFile:
    """A video of a folder.

    Attributes:
        path: of the file, or of a folder of PNGs.
        prompt: that it was made from; empty if unknown.
        replicate: its place among the folder's videos of this prompt, from 0; a plan numbers those of all folders.
        sha256: checksum of its bytes.
        seed: that it was made with, as a manifest or the file says; None if neither does.
        sample: number in a name of VBench's form; None in others.
    """

    path: Path
    prompt: str
    replicate: int
    sha256: str
    seed: int | None = None
    sample: int | None = None


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        label: its name in results.
        kind: a model, a folder of videos, or the truth of a suite that knows it.
        name: of the model, or the folder.
        sampling: of a model: what differs from its settings.
        videos: of a folder.
        notes: of a folder: sentences about what it holds and is not evaluated.
        sha256: of the files of a model; a plan fills it in.
    """

    label: str
    kind: Literal["model", "videos", "truth"]
    name: str
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    videos: tuple[VideoFile, ...] = ()
    notes: tuple[str, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class SuiteOptions:
    """What a suite is run with.

    Attributes:
        prompts: given ones, with a seed of their own or None; empty: the suite's or the installed prompt set's.
        count: prompts or clips, where none are given.
        num_frames: video frames of each video; None: the suite's own.
        seed: of prompts, clips and noise.
        seeds: noise seeds for each prompt.
        pairs: prompts and replicates that there are, where not every prompt has every replicate; empty: all.
        own_seeds: of each of these the seed of the noise, where the videos of folders say it; empty: they do not.
        hidden: lengths of occlusions in video frames.
        teacher: that students are held against.
    """

    prompts: tuple[tuple[str, int | None], ...] = ()
    count: int = 200
    num_frames: int | None = None
    seed: int = 0
    seeds: int = 1
    pairs: tuple[tuple[str, int], ...] = ()
    own_seeds: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    teacher: Subject | None = None

    def noise_seed(self, number: int, replicate: int, own: int | None = None) -> int:
        """Of one prompt and replicate."""
        return ((self.seed + number) if own is None else own) + replicate * SEED_STRIDE


@dataclass(frozen=True)
class Measured:
    """What was measured of one item.

    Attributes:
        values: by metric.
        excluded: by metric, why it has no value; under "" why nothing has.
        strip: filmstrip, a JPEG; empty without one.
        frames, height, width: of the video.
        fps: video frames a second.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    strip: bytes = b""
    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0


# Loads a subject's model; the last ones are kept.
Load = Callable[[Subject], "ARL2Pipeline"]


class Suite(ABC):
    """Measures models, folders of videos, or both.

    ``takes_videos`` and ``knows_truth`` say which subjects it accepts beside models, ``has_prompts`` whether prompts
    and video frames can be chosen, ``has_lengths`` whether lengths of occlusions can; ``primary`` is the metric that
    worst cases are sorted by. ``revision`` goes up when a metric's values do not mean what they meant: an evaluation
    begun before is not continued then.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    primary: ClassVar[str]
    takes_videos: ClassVar[bool] = False
    knows_truth: ClassVar[bool] = False
    has_prompts: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    has_lengths: ClassVar[bool] = False
    revision: ClassVar[int] = 0

    def check(self, options: SuiteOptions, subjects: Sequence[Subject]) -> None:
        """Refuse subjects, prompts and options that the suite cannot have, before any work.

        Raises:
            ConfigError: as said.
        """
        for subject in subjects:
            if subject.kind == "videos" and not self.takes_videos:
                raise ConfigError(
                    f"The suite '{self.name}' evaluates models; '{subject.label}' is a folder of videos, so leave it "
                    "out."
                )
            if subject.kind == TRUTH and not self.knows_truth:
                raise ConfigError(f"The suite '{self.name}' knows no truth; leave '{subject.label}' out.")
        if self.needs_teacher and options.teacher is None:
            raise ConfigError(f"The suite '{self.name}' holds students against a teacher; give --teacher MODEL.")
        if options.teacher is not None and not self.needs_teacher:
            raise ConfigError(f"--teacher goes with the suite that needs one; '{self.name}' does not, so leave it out.")
        for name, given in (("--prompts-file", options.prompts), ("--frames", options.num_frames)):
            if given and not self.has_prompts:
                raise ConfigError(f"The suite '{self.name}' has clips of its own; leave {name} out.")
        if options.hidden and not self.has_lengths:
            raise ConfigError(
                f"--hidden goes with the suite 'memory'; '{self.name}' occludes nothing, so leave it out."
            )
        for prompt, _ in options.prompts:
            if refusal := self.refusal(prompt):
                raise ConfigError(f"The prompt '{prompt[:60]}' cannot be evaluated: {refusal}")

    def refusal(self, prompt: str) -> str | None:
        """Why videos of this prompt cannot be measured; None if they can."""
        return None

    @abstractmethod
    def items(self, options: SuiteOptions) -> tuple[Item, ...]:
        """All items, in the order of the results."""

    @abstractmethod
    def measure_model(
        self, subject: Subject, items: Sequence[Item], options: SuiteOptions, load: Load
    ) -> list[Measured]:
        """Measure a model on items of one replicate and length, computed together."""

    def measure_files(self, files: Sequence[tuple[VideoFile, Item]]) -> list[Measured]:
        """Measure videos of a folder; of one that cannot be read, the reason is what is measured."""
        raise NotImplementedError(f"{self.name} takes no videos")

    def measure_truth(self, items: Sequence[Item], options: SuiteOptions) -> list[Measured]:
        """Measure what a perfect model would make."""
        raise NotImplementedError(f"{self.name} knows no truth")

    def metric(self, name: str) -> Metric:
        """Of a value's name, points of curves included."""
        return next(one for one in self.metrics if one.name == name.partition("@")[0])


def prompted_items(options: SuiteOptions) -> tuple[Item, ...]:
    """An item for each prompt and replicate, replicates one after the other: those of one are computed together."""
    times = Counter(prompt for prompt, _ in options.prompts)
    pairs = set(options.pairs)
    seeds = dict(zip(options.pairs, options.own_seeds, strict=True)) if options.own_seeds else {}
    return tuple(
        Item(
            prompt if times[prompt] == 1 else f"{prompt} (#{number})",
            prompt,
            seeds.get((prompt, replicate), options.noise_seed(number, replicate, own)),
            replicate,
            number,
        )
        for replicate in range(options.seeds)
        for number, (prompt, own) in enumerate(options.prompts)
        if not pairs or (prompt, replicate) in pairs
    )
