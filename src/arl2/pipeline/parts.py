"""Published VAE and text encoder: where they lie, in a base folder of either layout or in files of their own."""

from dataclasses import dataclass
from pathlib import Path

import torch

from arl2.errors import CheckpointError
from arl2.text.interface import TextPart
from arl2.video.codec import VideoCodec

# Files of the first release's folder (Wan-AI/Wan2.1-T2V-1.3B); the diffusers repository has folders instead.
ORIGINAL_VAE, ORIGINAL_TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
VAE, TEXT_ENCODER = "vae", "text_encoder"
TOKENIZERS = ("tokenizer", "google/umt5-xxl", "umt5-xxl")
_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class PublishedParts:
    """Where the parts are, each a file or a folder as diffusers writes it.

    Attributes:
        vae: weights; a folder has a config as well.
        text_encoder: the same.
        tokenizer: folder; None: inside the text encoder's file.
    """

    vae: Path
    text_encoder: Path
    tokenizer: Path | None


def find_parts(base: Path | None, *, vae: Path | None = None, text_encoder: Path | None = None) -> PublishedParts:
    """The parts of a base folder, or those given in its stead.

    Raises:
        CheckpointError: a part that is nowhere.
    """
    own_vae = vae or _of_base(base, "VAE", VAE, ORIGINAL_VAE)
    own_text = text_encoder or _of_base(base, "text encoder", TEXT_ENCODER, ORIGINAL_TEXT)
    return PublishedParts(own_vae, own_text, find_tokenizer(own_text, base))


def has_parts(folder: Path) -> bool:
    """Whether a folder holds a published VAE or text encoder."""
    return any((folder / name).exists() for name in (VAE, TEXT_ENCODER, ORIGINAL_VAE, ORIGINAL_TEXT))


def find_tokenizer(text_encoder: Path, *folders: Path | None) -> Path | None:
    """The folder of the tokenizer: beside a text encoder, or in other folders; None if its file has it inside.

    Raises:
        CheckpointError: it is in none.
    """
    from arl2.text.umt5_files import holds_tokenizer

    near = [text_encoder] if text_encoder.is_dir() else []
    near += [text_encoder.parent, *(folder for folder in folders if folder is not None)]
    places = [place for folder in near for place in (*(folder / name for name in TOKENIZERS), folder)]
    for place in places:
        if (place / _TOKENIZER_FILE).is_file():
            return place
    if holds_tokenizer(text_encoder):
        return None
    raise CheckpointError(
        f"Found no tokenizer for '{text_encoder}': its folder has no {_TOKENIZER_FILE}, alone or in a folder "
        f"{' or '.join(TOKENIZERS[:2])}, nor has a base; copy the tokenizer of Wan 2.1 there, or give --base."
    )


def load_vae(place: Path, *, dtype: torch.dtype) -> VideoCodec:
    """The VAE of a file or folder."""
    from arl2.video.wan_codec import WanCodec

    if place.is_dir():
        codec: VideoCodec = WanCodec.from_pretrained(place, torch_dtype=dtype)
        return codec
    return WanCodec.from_published(place, torch_dtype=dtype)


def load_text_encoder(place: Path, tokenizer: Path | None) -> TextPart:
    """The text encoder of a file or folder, in bfloat16; its weights are read for the first prompt."""
    from arl2.text.umt5 import SETTINGS, UMT5Text

    ours = place.is_dir() and (place.parent / SETTINGS).is_file()
    if ours and tokenizer is not None and tokenizer.parent == place.parent:
        return UMT5Text.from_pretrained(place.parent)  # one that we saved, with its length and dtype
    return UMT5Text.from_wan_original(place, tokenizer)


def _of_base(base: Path | None, what: str, folder: str, file: str) -> Path:
    option = f"--{folder.replace('_', '-')}"
    if base is None:
        raise CheckpointError(f"The {what} is missing; give its file with {option}, or a folder with --base.")
    if (base / folder).is_dir():
        return base / folder
    if (base / file).is_file():
        return base / file
    raise CheckpointError(
        f"'{base}' has no {what}: neither a folder '{folder}' nor a file '{file}'; copy it again, or give a file of "
        f"your own with {option}."
    )
