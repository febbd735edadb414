"""The text part of the shapes world: the words of its grammar; free-form prompts are rewritten in it first."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from arl2.shapes.prompts.captions import LONGEST_CAPTION, VOCABULARY
from arl2.shapes.prompts.parser import canonical, understood
from arl2.shapes.prompts.unknown import check_words, warn
from arl2.text.encoder import TextEncoder
from arl2.text.words import WordText

LENGTH = 16


class ShapesText:
    """A `TextPart` for free-form prompts: each becomes the canonical caption of its meaning."""

    def __init__(self, words: WordText) -> None:
        self.words = words
        self._told: set[str] = set()

    @classmethod
    def build(cls, *, width: int = 64, seed: int = 0) -> "ShapesText":
        """A new text part over the grammar's vocabulary, with seeded weights."""
        return cls(WordText.build(VOCABULARY, width=width, length=max(LENGTH, LONGEST_CAPTION), seed=seed))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ShapesText":
        """Load what `save_pretrained` wrote. Errors as for `WordText.from_pretrained`."""
        return cls(WordText.from_pretrained(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer and encoder into folders of their own."""
        self.words.save_pretrained(folder)

    @property
    def length(self) -> int:
        """Words in every output."""
        return self.words.length

    @property
    def width(self) -> int:
        """Numbers for each word."""
        return self.words.width

    @property
    def encoder(self) -> TextEncoder:
        return self.words.encoder

    def encode(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """Embeddings of what the prompts mean; see `canonical` for what open attributes become.

        Warns, once for each prompt, about words that are not understood. An empty prompt gives zeros.

        Raises:
            PromptError: A prompt names nothing of this world, asks for another subject, or contradicts itself.
        """
        said = [check_words(prompt) for prompt in prompts if prompt.strip()]
        captions = [canonical(prompt) if prompt.strip() else "" for prompt in prompts]
        # Nothing is said before every prompt is accepted: an error is then the only thing to read.
        for sentence in said:
            if sentence is not None and sentence not in self._told:
                self._told.add(sentence)
                warn(sentence)
        return self.words.encode(captions)

    def encode_quietly(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """As `encode`, of texts that nobody asked for (captions of clips): unknown words are passed over.

        Raises:
            PromptError: A text names nothing of this world, or contradicts itself.
        """
        return self.words.encode([canonical(prompt) if prompt.strip() else "" for prompt in prompts])

    def encode_negative(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """Embeddings to steer away from: nothing is refused, and of no known word they are the empty prompt's."""
        return self.words.encode([understood(prompt) for prompt in prompts])

    def encode_empty(self) -> Float[Tensor, "1 words width"]:
        """All zeros."""
        return self.words.encode_empty()

    def encode_captions(self, captions: list[str]) -> Float[Tensor, "batch words width"]:
        """Embeddings of captions word for word, for training; an empty caption gives zeros."""
        return self.words.encode(captions)
