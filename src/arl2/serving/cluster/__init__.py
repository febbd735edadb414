"""Many machines: the same server on Ray Serve. Fronts hold the viewers' sockets, workers have warm models.

``app`` is for ``serve run`` and RayService, with settings from the variable ``ARL2_CLUSTER`` (JSON); ``build`` takes
them as arguments. Importing this loads no Ray: what is asked for here does.
"""

import os
from typing import TYPE_CHECKING, Any

from arl2.errors import ConfigError
from arl2.files.plain import parse_json
from arl2.serving.cluster.settings import ClusterSettings as ClusterSettings
from arl2.serving.cluster.settings import settings_of

if TYPE_CHECKING:
    from ray.serve import Application

SETTINGS = "ARL2_CLUSTER"


def build(args: dict[str, Any]) -> "Application":
    """The application, for ``serve run arl2.serving.cluster:build model=shapes-75 store=/shared/streams``.

    Raises:
        ConfigError: see ``settings_of``; also where Ray is missing.
    """
    settings = settings_of(args)
    _require_ray()
    from arl2.serving.cluster.deployments import application

    return application(settings)


def _require_ray() -> None:
    try:
        import fastapi  # noqa: F401  both are extras
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise ConfigError('Serving from many machines needs Ray: pip install "arl2[cluster]".') from error


def __getattr__(name: str) -> Any:
    if name == "app":
        given = os.environ.get(SETTINGS, "{}")
        try:
            values = parse_json(given)
        except ValueError as error:
            raise ConfigError(f"{SETTINGS} is no JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f'Got {SETTINGS} {given!r:.80}; give an object, such as {{"store": "/shared/streams"}}.')
        return build(values)
    if name == "run":
        from arl2.serving.cluster.running import run

        return run
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
