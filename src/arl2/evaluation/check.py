"""One comparison, and whether it is within its limit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Of a tensor with a reference, of what was counted with what was measured.

    Attributes:
        name: what is compared.
        error: how far apart; of tensors relative (Frobenius).
        limit: how far apart it may be.
    """

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is within its limit; what is no number is not."""
        return self.error <= self.limit
