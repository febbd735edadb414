"""Embeddings of prompts for work that checks all its prompts before the first video: each prompt is encoded once.

A large text encoder takes seconds for a prompt, and on a GPU it is brought there for every call: checked and made, a
prompt would cost that twice, and a list of videos once more for each of them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.model.settings import GenerationSettings
from arl2.text.interface import TextPart, encode_negative

_MOST_KEPT = 1 << 30  # bytes; what is beyond is encoded again when it is used


class EncodedPrompts:
    """The prompt embeddings of a pipeline, kept on the CPU without the zero rows past a prompt's end.

    Of UMT5 in bfloat16 that is 8 kB a token. All outputs are without gradients.

    Args:
        text: encodes the prompts.
        settings: with the negative prompt.
    """

    def __init__(self, text: TextPart, settings: GenerationSettings) -> None:
        self._text, self._settings = text, settings
        self._kept: dict[str, Tensor] = {}
        self._bytes = 0
        self._negative: Tensor | None = None
        self._device = torch.device("cpu")

    def of(self, prompts: Sequence[str]) -> Float[Tensor, "batch words width"]:
        """Embeddings as ``ARL2Pipeline.stream`` takes them, where the text part gives them; errors are its own."""
        rows = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        lacking = [prompt for prompt in dict.fromkeys(prompts) if prompt not in rows]
        if lacking:
            with torch.no_grad():
                encoded = self._text.encode(lacking)
            self._device = encoded.device
            for prompt, padded in zip(lacking, encoded.cpu(), strict=True):
                rows[prompt] = _unpadded(padded)
                self._keep(prompt, rows[prompt])
        whole = rows[prompts[0]].new_zeros(len(prompts), self._text.length, self._text.width)
        for embedding, prompt in zip(whole, prompts, strict=True):
            embedding[: len(rows[prompt])] = rows[prompt]
        return whole.to(self._device)

    def negative(self) -> Float[Tensor, "one words width"] | None:
        """Of the settings' negative prompt; None without guidance or without a negative prompt."""
        prompt = self._settings.negative_prompt
        if self._settings.guidance_scale == 1.0 or not prompt.strip():
            return None
        if self._negative is None:
            with torch.no_grad():
                self._negative = encode_negative(self._text, prompt)
        return self._negative

    def _keep(self, prompt: str, rows: Tensor) -> None:
        if self._bytes + rows.nbytes <= _MOST_KEPT:
            self._kept[prompt] = rows
            self._bytes += rows.nbytes


def _unpadded(rows: Float[Tensor, "words width"]) -> Float[Tensor, "used width"]:
    used = (rows != 0).any(dim=1).nonzero()
    return rows[: int(used[-1]) + 1 if len(used) else 0].clone()
