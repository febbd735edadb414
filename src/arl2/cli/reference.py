"""The command line of the published code, in the words of ``arl2 generate``.

What people typed there works here: ``--config-path X.yaml --checkpoint-path Y.pt --data-path prompts.txt
--output-folder out --num-output-frames 21 --use-ema``, with dashes or with underscores. What differs is said once.

With ``--i2v`` the data path is a folder of images with prompts, of a kind that ``arl2.serving.prompts_file`` reads.
"""

import argparse
from pathlib import Path

from arl2.cli import words
from arl2.errors import ConfigError
from arl2.geometry import video_frames_of

# Where the published code looks for text encoder and VAE.
BASE = Path("wan_models/Wan2.1-T2V-1.3B")
# Without that folder: the named model whose text encoder and VAE are the same.
CARD = "causal-forcing"
# Its default length, in latent frames, and how many video frames one stands for.
_LATENT_FRAMES, _TEMPORAL_FACTOR = 21, 4

_PATHS = ("config_path", "checkpoint_path", "data_path", "extended_prompt_path", "output_folder")
_NUMBERS = ("num_output_frames", "num_samples")
_SWITCHES = ("use_ema", "i2v", "save_with_index")


def add_words(parser: argparse.ArgumentParser) -> None:
    """Accept the published code's options; help does not list them one by one."""
    for name in _PATHS:
        parser.add_argument(*_spellings(name), dest=name, type=Path, help=argparse.SUPPRESS)
    for name in _NUMBERS:
        parser.add_argument(*_spellings(name), dest=name, type=words.whole_from_one, help=argparse.SUPPRESS)
    for name in _SWITCHES:
        parser.add_argument(*_spellings(name), dest=name, action="store_true", help=argparse.SUPPRESS)


def is_asked(arguments: argparse.Namespace) -> bool:
    """Whether any of the published code's words came."""
    given = vars(arguments)
    return any(given[name] not in (None, False) for name in (*_PATHS, *_NUMBERS, *_SWITCHES))


def translated(arguments: argparse.Namespace) -> tuple[argparse.Namespace, list[str]]:
    """The same in our words, and sentences about what a person should know.

    Raises:
        ConfigError: a word that needs another, or the same thing said in both ways.
    """
    ours, given = argparse.Namespace(**vars(arguments)), vars(arguments)
    notes = []
    _take(ours, given, {"config_path": "config", "checkpoint_path": "weights", "output_folder": "output"})
    if given["data_path"] is None:
        if given["i2v"] or given["extended_prompt_path"] is not None:
            raise ConfigError("--i2v and --extended-prompt-path need --data-path.")
    elif given["i2v"] and not given["data_path"].is_dir():
        raise ConfigError(
            f"With --i2v the data path is a folder of images with prompts, but '{given['data_path']}' came."
        )
    elif given["data_path"].is_dir() and not given["i2v"]:
        raise ConfigError(f"'{given['data_path']}' is a folder; add --i2v, or give a .txt with a prompt a line.")
    _take(ours, given, {"data_path": "prompts_file"})
    if given["extended_prompt_path"] is not None:
        if given["i2v"]:
            raise ConfigError("--extended-prompt-path goes with prompts alone, not with --i2v.")
        ours.prompts_file = given["extended_prompt_path"]
        notes.append("--extended-prompt-path: these prompts are used, and the videos are named after them.")
    if given["num_samples"] is not None and ours.prompts_file is None:
        raise ConfigError("--num-samples goes with --data-path.")
    if given["num_output_frames"] is not None and ours.frames is not None:
        raise ConfigError("Both --num-output-frames and --frames came; give one of them.")
    if given["use_ema"]:
        if ours.weights_branch not in (None, "ema"):
            raise ConfigError(f"Both --use-ema and --weights-branch {ours.weights_branch} came; give one of them.")
        ours.weights_branch = "ema"
    if given["save_with_index"]:
        notes.append("--save-with-index has no meaning here: every name begins with the index.")
    if ours.weights is not None or ours.config is not None:
        notes += _as_published(ours, given["num_output_frames"])
    if given["num_output_frames"] is not None:
        ours.frames = video_frames_of(0, given["num_output_frames"], _TEMPORAL_FACTOR)
        notes.append(f"{given['num_output_frames']} latent frames are {ours.frames} video frames.")
    return ours, notes


def _as_published(ours: argparse.Namespace, latent_frames: int | None) -> list[str]:
    """With a published model its words have the published code's defaults: length, weights, base, GPU and bfloat16."""
    notes = ["Noise is keyed by seed and block here, so a seed gives another video than the published code's."]
    if ours.frames is None and latent_frames is None:
        ours.frames = video_frames_of(0, _LATENT_FRAMES, _TEMPORAL_FACTOR)
    if ours.weights is not None and ours.weights_branch is None:
        ours.weights_branch = "plain"
    if ours.base is None and ours.model is None:
        ours.base, ours.model = (BASE, None) if BASE.is_dir() else (None, CARD)
    if ours.device is None:
        import torch

        ours.device = "cuda" if torch.cuda.is_available() else "cpu"
    if ours.dtype is None:
        ours.dtype = "bfloat16"
        notes.append(f"Computing in bfloat16 on {ours.device}, as the published code does; see --dtype and --device.")
    return notes


def _take(ours: argparse.Namespace, given: dict[str, object], names: dict[str, str]) -> None:
    for theirs, name in names.items():
        if given[theirs] is None:
            continue
        if given[name] is not None:
            raise ConfigError(f"Both {_spellings(theirs)[0]} and --{name.replace('_', '-')} came; give one of them.")
        setattr(ours, name, given[theirs])


def _spellings(name: str) -> tuple[str, ...]:
    dashed = f"--{name.replace('_', '-')}"
    return (dashed,) if "_" not in name else (dashed, f"--{name}")
