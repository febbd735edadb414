"""Settings of a host of live streams. Loads no torch."""

from dataclasses import dataclass

from arl2.errors import ConfigError
from arl2.serving.live.feed import RING_BYTES


@dataclass(frozen=True, kw_only=True)
class HostSettings:
    """How a ``LocalHost`` runs its streams.

    Attributes:
        point_every: blocks between two points.
        keep_points: of each stream; the oldest go first.
        sleep_after: seconds without a viewer after which a stream goes to sleep; None: never.
        tell_every: seconds between two messages of how a stream is doing.
        ring_bytes: encoded frames of each stream that are kept for viewers.
        most_streams: that run at once; those asleep do not count.
        most_kept: streams in all, those asleep too.
        memory_bytes: that streams may take together; None: most of what is free on the device at the beginning.
        most_pixels: of a stream's picture, as a multiple of the model's own: larger ones hold up all others.
        most_window: latent frames that a stream attends to, as a multiple of the model's own window.
        scale: whole number by which pictures are enlarged for viewers.
        margin: seconds before a block is needed at which it must be there.
        first_blocks: that are kept for streams which begin alike, if they take a tenth of the memory at most; 0: none.
        shared: others run streams of the same store, see ``SharedHost``.
    """

    point_every: int = 4
    keep_points: int = 32
    sleep_after: float | None = 30.0
    tell_every: float = 1.0
    ring_bytes: int = RING_BYTES
    most_streams: int = 64
    most_kept: int = 10_000
    memory_bytes: int | None = None
    most_pixels: float = 4.0
    most_window: float = 16.0
    scale: int = 1
    margin: float = 0.1
    first_blocks: int = 4
    shared: bool = False

    @property
    def most_unknown(self) -> int:
        """Blocks that a viewer may have been shown beyond what is kept: more are not believed."""
        return 2 * self.point_every + 8

    def __post_init__(self) -> None:
        for name in ("point_every", "keep_points", "most_streams", "most_kept", "scale"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Got {name} {getattr(self, name)}; give 1 or more.")
        for name in ("most_pixels", "most_window"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"Got {name} {getattr(self, name)}; give 1 or more.")
        for name in ("ring_bytes", "first_blocks", "margin"):
            if getattr(self, name) < 0:
                raise ConfigError(f"Got {name} {getattr(self, name)}; give 0 or more.")
        if not self.tell_every > 0 or (self.sleep_after is not None and not self.sleep_after > 0):
            raise ConfigError("The seconds of tell_every and sleep_after must be above 0.")
