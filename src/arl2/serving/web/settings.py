"""What the web server is told: the model's facts, who may come in, and how much they may send."""

from dataclasses import dataclass, field

from arl2.model.settings import CHANGE_MODES, ChangeMode
from arl2.version import __version__


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a client needs to know of the model before it begins a stream.

    Attributes:
        name: as the user named it.
        width, height, fps: of its videos as they are made; streams are perhaps shown larger.
        block_seconds: of video in a block.
        mode: what a new prompt does unless the client says.
        modes: those that there are.
        examples: prompts that the model understands.
        version: of arl2.
    """

    name: str
    width: int
    height: int
    fps: int
    block_seconds: float = 0.0
    mode: ChangeMode = "refresh"
    modes: tuple[str, ...] = CHANGE_MODES
    examples: tuple[str, ...] = ()
    version: str = __version__


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """How the server meets its clients.

    Attributes:
        model: facts of the model.
        api_key: that every request needs, the page, /health and /ready aside; None: none.
        allow_origins: pages of other servers that may use this one, such as ``https://example.org``.
        allow_hosts: names that the server answers to besides those of this machine, where no key protects it.
        most_sockets: viewers' sockets at once.
        most_body, most_upload, most_message: bytes of a body, of an uploaded snapshot or video, of a socket's message.
        most_uploads: large bodies that come in at once.
        most_prompt: characters of a prompt.
        most_waiting: commands of one socket that wait for their receipts.
        body_seconds: that a client may pause while it sends a body.
    """

    model: ModelFacts
    api_key: str | None = field(default=None, repr=False)
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    most_sockets: int = 1000
    most_body: int = 1 << 20
    most_upload: int = 256 << 20
    most_uploads: int = 4
    most_message: int = 64 << 10
    most_prompt: int = 5000
    most_waiting: int = 32
    body_seconds: float = 30.0
