"""A text encoder as small as it gets: one vector for each word, one for each position."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from arl2.bases.models import ConfigMixin, ModelMixin, register_to_config
from arl2.errors import Arl2Error


class TextEncoder(ModelMixin, ConfigMixin):
    """Embeds words and positions. The first weights depend on `seed` alone, not on the global generator.

    Args:
        vocabulary_size: How many ids there are.
        width: Numbers for each word.
        length: Most words of a prompt.
        seed: 0 or more.

    Raises:
        Arl2Error: A size below 1 or a negative seed.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, vocabulary_size: int, width: int = 64, length: int = 16, seed: int = 0) -> None:
        super().__init__()
        if min(vocabulary_size, width, length) < 1 or seed < 0:
            raise Arl2Error(
                f"TextEncoder got vocabulary_size={vocabulary_size}, width={width}, length={length}, "
                f"seed={seed}; sizes must be 1 or more, the seed 0 or more."
            )
        self.words = nn.Embedding(vocabulary_size, width, _weight=torch.empty(vocabulary_size, width))
        self.positions = nn.Embedding(length, width, _weight=torch.empty(length, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first weights again: words of unit variance, positions a little weaker."""
        # Loading builds the module without memory first; there is nothing to fill then.
        if self.words.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(self.config.seed)
        with torch.no_grad():
            for embedding, spread in ((self.words, 1.0), (self.positions, 0.5)):
                draws = torch.randn(embedding.weight.shape, generator=generator)
                embedding.weight.copy_(spread * draws)

    def forward(
        self, ids: Int64[Tensor, "batch words"], mask: Bool[Tensor, "batch words"]
    ) -> Float[Tensor, "batch words width"]:
        """Embeddings of the words; zero where `mask` is false.

        Args:
            ids: Word ids, at most `length` a row.
            mask: True for words, false for padding.

        Raises:
            Arl2Error: More words than there are positions.
        """
        words = ids.shape[1]
        if words > self.config.length:
            raise Arl2Error(f"The prompt has {words} words; this encoder has {self.config.length} positions.")
        embedded = self.words(ids) + self.positions.weight[:words]
        return embedded * mask[..., None]
