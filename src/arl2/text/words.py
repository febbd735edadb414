"""A whole text part over a small vocabulary: word tokenizer and tiny encoder, saved and loaded together."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.errors import Arl2Error, CheckpointError
from arl2.files.parts import load_part
from arl2.files.regular import naming, parsed_by_others
from arl2.text.encoder import TextEncoder
from arl2.text.tokenizer import WordTokenizer, build_word_tokenizer

TOKENIZER_FOLDER, ENCODER_FOLDER = "tokenizer", "text_encoder"


class WordText:
    """A `TextPart` of words known one by one; what is not in the vocabulary becomes `<unk>`.

    Args:
        tokenizer: As `build_word_tokenizer` makes it.
        encoder: With an id for each of the tokenizer's words and as many positions as its length.

    Raises:
        Arl2Error: Tokenizer and encoder do not belong together.
    """

    def __init__(self, tokenizer: WordTokenizer, encoder: TextEncoder) -> None:
        sizes = (len(tokenizer), tokenizer.length)
        accepted = (encoder.config.vocabulary_size, encoder.config.length)
        if sizes != accepted:
            raise Arl2Error(
                f"The tokenizer has (words, length) {sizes!r:.80} and the encoder {accepted}; they must be equal."
            )
        self.tokenizer = tokenizer
        self.encoder = encoder

    @classmethod
    def build(cls, vocabulary: Sequence[str], *, width: int = 64, length: int = 16, seed: int = 0) -> "WordText":
        """A new text part with seeded weights. Errors as for the tokenizer and the encoder."""
        tokenizer = build_word_tokenizer(vocabulary, length=length)
        return cls(tokenizer, TextEncoder(len(tokenizer), width=width, length=length, seed=seed))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "WordText":
        """Load what `save_pretrained` wrote. Touches no network.

        Raises:
            CheckpointError: The folder lacks a part, or one is damaged.
        """
        folder = Path(folder)
        for part in (TOKENIZER_FOLDER, ENCODER_FOLDER):
            if not (folder / part).is_dir():
                raise CheckpointError(f"{folder} has no folder {part!r}; give the folder that save_pretrained wrote.")
        encoder: TextEncoder = load_part(TextEncoder, folder / ENCODER_FOLDER, dtype=torch.float32)
        place = folder / TOKENIZER_FOLDER
        tokenizer = WordTokenizer.from_pretrained(place)
        with naming(folder):
            text = cls(tokenizer, encoder)
            text.encode(["a b"])  # a tokenizer that was damaged may be read, and then do nothing as it should
        return text

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer and encoder into folders of their own."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        self.encoder.save_pretrained(folder / ENCODER_FOLDER)

    @property
    def length(self) -> int:
        """Words in every output."""
        return int(self.encoder.config.length)

    @property
    def width(self) -> int:
        """Numbers for each word."""
        return int(self.encoder.config.width)

    def encode(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """Embeddings of the prompts as they are, [prompts, length, width], on the encoder's device.

        Longer prompts are cut. Rows past a prompt's end are zero, so an empty prompt is all zeros.
        Gradients reach the encoder.
        """
        ids, mask = self._tokens(prompts)
        device = self.encoder.words.weight.device
        embedded: Tensor = self.encoder(ids.to(device), mask.to(device))
        return embedded

    def _tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, [prompts, length] each."""
        place = Path(self.tokenizer.name)
        # The library works by what the tokenizer's file says, and panics at some of what a damaged one says.
        with parsed_by_others(place, "a tokenizer that works"):
            ids, mask = self.tokenizer(prompts)
        shape, words = (len(prompts), self.length), int(self.encoder.config.vocabulary_size)
        if tuple(ids.shape) != shape or tuple(mask.shape) != shape or not bool(((ids >= 0) & (ids < words)).all()):
            raise CheckpointError(
                f"{place} gives {list(ids.shape)} ids for {len(prompts)} prompts of {self.length} words, or ids that "
                f"none of the {words} words has; copy it again."
            )
        return ids, mask

    def encode_empty(self) -> Float[Tensor, "1 words width"]:
        """All zeros."""
        return self.encode([""])
