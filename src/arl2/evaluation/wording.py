"""Numbers in sentences."""


def counted(number: int, one: str, several: str | None = None) -> str:
    """``1 video``, ``2 videos``; ``several`` where that is not ``one`` with an s."""
    return f"{number} {one if number == 1 else several or one + 's'}"
