"""A whole text part over a small vocabulary: word tokenizer and tiny encoder, saved and loaded together."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from arl2.errors import Arl2Error, CheckpointError
from arl2.text.encoder import TextEncoder
from arl2.text.tokenizer import build_word_tokenizer

TOKENIZER_FOLDER, ENCODER_FOLDER = "tokenizer", "text_encoder"


class WordText:
    """A `TextPart` of words known one by one; what is not in the vocabulary becomes `<unk>`.

    Args:
        tokenizer: As `build_word_tokenizer` makes it.
        encoder: With an id for each of the tokenizer's words and as many positions as its length.

    Raises:
        Arl2Error: Tokenizer and encoder do not belong together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, encoder: TextEncoder) -> None:
        sizes = (len(tokenizer), tokenizer.model_max_length)
        accepted = (encoder.config.vocabulary_size, encoder.config.length)
        if sizes != accepted:
            raise Arl2Error(
                f"The tokenizer has (words, length) {sizes} and the encoder {accepted}; they must be equal."
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
            CheckpointError: The folder lacks a part.
        """
        folder = Path(folder)
        for part in (TOKENIZER_FOLDER, ENCODER_FOLDER):
            if not (folder / part).is_dir():
                raise CheckpointError(f"{folder} has no folder {part!r}; give the folder that save_pretrained wrote.")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / TOKENIZER_FOLDER, local_files_only=True)
        encoder = TextEncoder.from_pretrained(folder / ENCODER_FOLDER, local_files_only=True)
        return cls(tokenizer, encoder)

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
        rows = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        device = self.encoder.words.weight.device
        embedded: Tensor = self.encoder(rows["input_ids"].to(device), rows["attention_mask"].to(device, torch.bool))
        return embedded

    def encode_empty(self) -> Float[Tensor, "1 words width"]:
        """All zeros."""
        return self.encode([""])
