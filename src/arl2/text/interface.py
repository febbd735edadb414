"""What every text part does, whatever model is inside."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn


@runtime_checkable
class TextPart(Protocol):
    """Turns prompts into the embeddings that a video model attends to."""

    @property
    def length(self) -> int:
        """Words (or pieces of words) in every output; shorter prompts are filled up with zeros."""
        ...

    @property
    def width(self) -> int:
        """Numbers for each word."""
        ...

    def encode(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """Embeddings of the prompts, [prompts, length, width]; rows past a prompt's end are zero."""
        ...

    def encode_empty(self) -> Float[Tensor, "1 words width"]:
        """Embeddings of the empty prompt, which classifier-free guidance steers away from by default."""
        ...


@runtime_checkable
class EncoderAtHand(TextPart, Protocol):
    """A text part whose encoder is a small module that is always loaded: it can be hashed, and trained."""

    @property
    def encoder(self) -> nn.Module:
        """The module."""
        ...


@runtime_checkable
class DiscerningText(TextPart, Protocol):
    """A text part that refuses prompts or warns about them; what is no request goes other ways."""

    def encode_quietly(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """As ``encode``, without warnings: captions of clips."""
        ...

    def encode_negative(self, prompts: list[str]) -> Float[Tensor, "batch words width"]:
        """What guidance steers away from; nothing is refused."""
        ...


def encode_captions(text: TextPart, captions: list[str]) -> Float[Tensor, "batch words width"]:
    """Embeddings of texts that describe clips which exist."""
    return text.encode_quietly(captions) if isinstance(text, DiscerningText) else text.encode(captions)


def encode_negative(text: TextPart, prompt: str) -> Float[Tensor, "1 words width"]:
    """Embeddings of a negative prompt; an empty one gives those of the empty prompt."""
    if not prompt.strip():
        return text.encode_empty()
    return text.encode_negative([prompt]) if isinstance(text, DiscerningText) else text.encode([prompt])
