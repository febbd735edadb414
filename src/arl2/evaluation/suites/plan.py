"""What an evaluation will do: every subject's items in units, and a fingerprint that a resumed run must share."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from arl2.errors import ConfigError
from arl2.evaluation.suites.pairing import paired, seed_notes, with_folder_prompts, with_folder_seeds
from arl2.evaluation.suites.registry import PROMPT_SETS
from arl2.evaluation.suites.suite import Item, Subject, Suite, SuiteOptions, VideoFile
from arl2.evaluation.wording import counted
from arl2.extensions import named
from arl2.files.records import record_from_mapping
from arl2.pipeline.options import ModelSource
from arl2.serving.file_names import is_text
from arl2.version import __version__


@dataclass(frozen=True)
class Unit:
    """What one process computes at a time and writes whole: some items of one subject.

    Attributes:
        name: of its record.
        subject: its number.
        items: of one replicate and length, computed together: the same in every run, as sums depend on what is
            computed together.
        videos: of a folder, one for each item.
    """

    name: str
    subject: int
    items: tuple[Item, ...]
    videos: tuple[VideoFile, ...] = ()


@dataclass(frozen=True)
class Plan:
    """An evaluation, before any work.

    Attributes:
        suite: its name.
        subjects: the first is what the others are compared with. Models have the hash of their files.
        options: with the prompts filled in.
        items: of all subjects.
        units: in order.
        missing: of folders: (subject, item, why) of items that it has no video for.
        notes: sentences for the report.
        prompt_text: ``"module:Class"`` of the text part that the prompts need; None for given prompts.
        revision: of the suite.
    """

    suite: str
    subjects: tuple[Subject, ...]
    options: SuiteOptions
    items: tuple[Item, ...]
    units: tuple[Unit, ...]
    missing: tuple[tuple[int, Item, str], ...]
    notes: tuple[str, ...]
    prompt_text: str | None
    device: str
    dtype: str | None
    revision: int = 0

    def to_mapping(self) -> dict[str, Any]:
        """Everything that decides the results, as plain values: what files hold, and not where they lie."""
        return {
            "arl2": __version__,
            "suite": self.suite,
            # Left out of the first one, so that what was begun before there were revisions can be continued.
            **({"revision": self.revision} if self.revision else {}),
            "options": _plain(self.options),
            "subjects": [_plain(subject) for subject in self.subjects],
            "units": [[unit.name, unit.subject, [asdict(item) for item in unit.items]] for unit in self.units],
            "device": self.device,
            "dtype": self.dtype,
        }

    @property
    def has_seeds(self) -> bool:
        """Whether the seeds of the items are those of all videos: of folders, too, or there are none."""
        return bool(self.options.own_seeds) or all(subject.kind != "videos" for subject in self.subjects)

    @property
    def fingerprint(self) -> str:
        """Of ``to_mapping``: runs of one fingerprint give the same results."""
        return hashlib.sha256(json.dumps(self.to_mapping(), sort_keys=True).encode()).hexdigest()


def make_plan(
    suite: Suite,
    subjects: Sequence[Subject],
    options: SuiteOptions,
    *,
    batch: int,
    device: str = "cpu",
    dtype: str | None = None,
) -> Plan:
    """Choose the prompts, and cut the work into units of at most ``batch`` items.

    Raises:
        ConfigError: subjects that the suite cannot have, two of one label, no prompts, or a folder that has no video
            in common with the others.
        CheckpointError: a model that is not there or not whole.
    """
    labels = [subject.label for subject in subjects]
    if repeated := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"'{repeated}' is given twice; give each model or folder once, or NAME:window=9 for another.")
    if wrong := next((label for label in labels if not is_text(label)), None):
        raise ConfigError(f"The name '{wrong.encode(errors='backslashreplace').decode()}' is not UTF-8; rename it.")
    suite.check(options, subjects)
    subjects, how = paired(subjects, options.prompts)
    options, prompt_text = _with_prompts(suite, subjects, options)
    items = suite.items(options)
    # Hashed before anything of an earlier run is reused: other weights under the same name are another model.
    subjects = [_hashed(subject, device, dtype) for subject in subjects]
    if options.teacher is not None:
        options = replace(options, teacher=_hashed(options.teacher, device, dtype))
    refused = {item.prompt: suite.refusal(item.prompt) for item in items} if suite.has_prompts else {}
    sampled = [item for item in items if not refused.get(item.prompt)]
    units: list[Unit] = []
    missing: list[tuple[int, Item, str]] = []
    for number, subject in enumerate(subjects):
        if subject.kind == "videos":
            there = {(video.prompt, video.replicate): video for video in subject.videos}
            own = [item for item in items if (item.prompt, item.replicate) in there]
            lacking = [item for item in items if (item.prompt, item.replicate) not in there]
            missing += [(number, item, "no video of this prompt and seed") for item in lacking]
            if not own:
                raise ConfigError(_nothing_of(subject, items))
            for first in range(0, len(own), batch):
                part = tuple(own[first : first + batch])
                videos = tuple(there[item.prompt, item.replicate] for item in part)
                units.append(Unit(f"{number:02d}-{len(units):05d}", number, part, videos))
            continue
        missing += [(number, item, str(refused[item.prompt])) for item in items if refused.get(item.prompt)]
        for group in _groups(sampled):
            for first in range(0, len(group), batch):
                part = tuple(group[first : first + batch])
                units.append(Unit(f"{number:02d}-{len(units):05d}", number, part))
    notes = (
        *how,
        *seed_notes(subjects, options),
        *(note for subject in subjects for note in subject.notes),
        *_unused(subjects, items),
    )
    return Plan(
        suite.name,
        tuple(subjects),
        options,
        items,
        tuple(units),
        tuple(missing),
        notes,
        prompt_text,
        device,
        dtype,
        suite.revision,
    )


def _with_prompts(suite: Suite, subjects: Sequence[Subject], options: SuiteOptions) -> tuple[SuiteOptions, str | None]:
    """Given prompts, else those of the folders, else an installed set's; and the text part that the last needs.

    Seeds are those of the folders' videos, where these have any.
    """
    if not suite.has_prompts:
        return options, None
    has_folders = any(subject.kind == "videos" for subject in subjects)
    if options.prompts:
        prompts = [prompt for prompt, _ in options.prompts]
        if repeated := next((one for one in prompts if prompts.count(one) > 1), None):
            raise ConfigError(f"The prompt '{repeated[:60]}' is given twice; use --seeds for several videos of one.")
        return with_folder_seeds(subjects, options) if has_folders else options, None
    if has_folders:
        return with_folder_prompts(subjects, options), None
    if not PROMPT_SETS:
        raise ConfigError("Give prompts: --prompts-file FILE.")
    chosen = next(iter(PROMPT_SETS.values()))
    prompts = named(chosen.place)(options.count, seed=options.seed)
    return replace(options, prompts=tuple((one, None) for one in prompts)), chosen.text


def _hashed(subject: Subject, device: str, dtype: str | None) -> Subject:
    if subject.kind != "model":
        return subject
    # Imported here: folders of videos need no model code.
    from arl2.pipeline.weights_hash import files_hash

    source = record_from_mapping(ModelSource, {"model": subject.name, "device": device, "dtype": dtype})
    return replace(subject, sha256=files_hash(source))


def _groups(items: Sequence[Item]) -> list[list[Item]]:
    """Items of one replicate and length, in their order."""
    groups: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        groups.setdefault((item.replicate, item.length), []).append(item)
    return list(groups.values())


def _unused(subjects: Sequence[Subject], items: Sequence[Item]) -> tuple[str, ...]:
    wanted = {(item.prompt, item.replicate) for item in items}
    notes = []
    for subject in subjects:
        extra = [video for video in subject.videos if (video.prompt, video.replicate) not in wanted]
        if extra:
            what = f"{counted(len(extra), 'video')} of '{subject.label}' {'is' if len(extra) == 1 else 'are'}"
            notes.append(f"{what} of other prompts or seeds and not evaluated, first '{extra[0].path.name}'.")
    return tuple(notes)


def _nothing_of(subject: Subject, items: Sequence[Item]) -> str:
    """What to say of a folder that has no video of any item: its prompts are others, or its seeds are."""
    seeds = {item.prompt: item.seed for item in reversed(items)}
    same = next((video for video in subject.videos if video.prompt in seeds), None)
    if same is not None:
        wanted = f"seed {seeds[same.prompt]}" if same.seed is not None else "a lower number"
        has = f"seed {same.seed}" if same.seed is not None else f"number {same.sample}"
        return (
            f"'{subject.label}' has no video of the prompts and seeds that are evaluated: of '{same.prompt[:60]}' "
            f"{wanted} is wanted, and it has such as {has}. Correct the seeds of the prompts, take more of them with "
            "--seeds, or leave it out."
        )
    return (
        f"'{subject.label}' has no video of the prompts that are evaluated, such as '{items[0].prompt[:60]}'; its own "
        f"are such as '{subject.videos[0].prompt[:60]}'. Correct its manifest.jsonl, or leave it out."
    )


def _plain(record: SuiteOptions | Subject) -> Any:
    """Plain values; of subjects what their files hold, as paths and notes decide nothing."""
    if isinstance(record, Subject):
        videos = [{**asdict(video), "path": video.path.name} for video in record.videos]
        name = "" if record.kind != "truth" else record.name
        content = {**asdict(replace(record, videos=(), notes=(), name=name)), "videos": videos}
    else:
        content = asdict(replace(record, teacher=None))
        content["teacher"] = None if record.teacher is None else _plain(record.teacher)
    return json.loads(json.dumps(content, default=str))
