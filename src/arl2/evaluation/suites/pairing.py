"""Which videos of folders are pairs, and which seeds models sample with beside them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from arl2.evaluation.suites.suite import Subject, SuiteOptions, VideoFile

# Prompts, with a seed of their own or None.
Prompts = Sequence[tuple[str, int | None]]


def paired(subjects: Sequence[Subject], given: Prompts) -> tuple[list[Subject], tuple[str, ...]]:
    """Subjects whose videos of one prompt and seed have one replicate; and a note where seeds are not what pairs.

    Of given prompts only their videos count, and a seed that is given with a prompt is its first replicate.
    """
    folders = _videos(subjects, given)
    what = next((one for one in ("seed", "sample") if _all(folders, one)), None)
    if what is None:
        several = len(folders) > 1 and any(video.replicate for one in folders for video in one)
        note = "Videos of one prompt are paired in their order: not all have a seed, or a number, of their own."
        return list(subjects), (note,) if several else ()
    numbers: dict[str, set[int]] = {}
    for video in (video for one in folders for video in one):
        numbers.setdefault(video.prompt, set()).add(getattr(video, what))
    first = {prompt: seed for prompt, seed in given if seed is not None} if what == "seed" else {}
    places = {
        (prompt, number): place
        for prompt, found in numbers.items()
        for place, number in enumerate(_ordered(found, first.get(prompt)))
    }

    def placed(video: VideoFile) -> VideoFile:
        place = places.get((video.prompt, getattr(video, what)))
        return video if place is None else replace(video, replicate=place)

    return [replace(one, videos=tuple(map(placed, one.videos))) for one in subjects], ()


def with_folder_prompts(subjects: Sequence[Subject], options: SuiteOptions) -> SuiteOptions:
    """Options with the prompts of the folders' videos, and their seeds where those are what pairs them."""
    folders = _videos(subjects, ())
    pairs = tuple(dict.fromkeys((video.prompt, video.replicate) for one in folders for video in one))
    known = _seeds(folders)
    return replace(
        options,
        prompts=tuple((one, None) for one in dict.fromkeys(prompt for prompt, _ in pairs)),
        pairs=pairs,
        own_seeds=tuple(known[pair] for pair in pairs) if known else (),
        seeds=1 + max(replicate for _, replicate in pairs),
    )


def with_folder_seeds(subjects: Sequence[Subject], options: SuiteOptions) -> SuiteOptions:
    """Options of given prompts with the seeds of the folders' videos of these, where all of them have one."""
    known = _seeds(_videos(subjects, options.prompts))
    if not known:
        return options
    # A seed that is given with a prompt stays: it is that of the first replicate, of which ``known`` has no other.
    seeds = {
        (prompt, replicate): known.get((prompt, replicate), options.noise_seed(number, replicate, own))
        for replicate in range(options.seeds)
        for number, (prompt, own) in enumerate(options.prompts)
    }
    return replace(options, pairs=tuple(seeds), own_seeds=tuple(seeds.values()))


def seed_notes(subjects: Sequence[Subject], options: SuiteOptions) -> tuple[str, ...]:
    """What is to be said where models cannot have the seeds of the folders' videos."""
    if options.own_seeds or not {"videos", "model"} <= {subject.kind for subject in subjects}:
        return ()
    given = "the seeds of the prompts file, else " if any(own is not None for _, own in options.prompts) else ""
    return (
        "Not all videos of the folders have a seed of their own, so those of models are of other noise: "
        f"{given}seed {options.seed} for the first prompt, {options.seed + 1} for the second and so on.",
    )


def _videos(subjects: Sequence[Subject], given: Prompts) -> list[list[VideoFile]]:
    """Of each folder the videos of given prompts, or all."""
    wanted = {prompt for prompt, _ in given}
    return [
        [video for video in subject.videos if not wanted or video.prompt in wanted]
        for subject in subjects
        if subject.kind == "videos"
    ]


def _all(folders: Sequence[Sequence[VideoFile]], what: str) -> bool:
    """Whether each video has a seed (or a number of its sample), and no two of a prompt in one folder the same."""
    for folder in folders:
        own = [(video.prompt, getattr(video, what)) for video in folder]
        if len(set(own)) < len(own) or any(number is None for _, number in own):
            return False
    return True


def _seeds(folders: Sequence[Sequence[VideoFile]]) -> dict[tuple[str, int], int]:
    """By prompt and replicate; none where not all videos have one."""
    if not _all(folders, "seed"):
        return {}
    return {(one.prompt, one.replicate): one.seed for folder in folders for one in folder if one.seed is not None}


def _ordered(numbers: Iterable[int], first: int | None) -> list[int]:
    """The least first, but one that is given before all, whether it is among them or not."""
    return [*([] if first is None else [first]), *sorted(set(numbers) - {first})]
