"""How many kernels an operation of arl2 launches on a GPU, for those who count: :mod:`arl2.evaluation.account`."""

_LAUNCHES: dict[str, int] = {}


def declare_launches(name: str, count: int) -> None:
    """Of the custom operation ``arl2::name``; others count as one."""
    _LAUNCHES[name] = count


def launches_of(name: str) -> int:
    """As declared, else 1."""
    return _LAUNCHES.get(name, 1)
