"""``ModelMixin``, ``ConfigMixin`` and ``register_to_config``, of diffusers or our own."""

import sys
from typing import TYPE_CHECKING, Any

from arl2.bases.choice import takes_own

if TYPE_CHECKING or not takes_own():
    from diffusers.configuration_utils import ConfigMixin as ConfigMixin
    from diffusers.configuration_utils import register_to_config as register_to_config
    from diffusers.models.modeling_utils import ModelMixin as ModelMixin
else:
    from arl2.bases.own import ConfigMixin as ConfigMixin
    from arl2.bases.own import ModelMixin as ModelMixin
    from arl2.bases.own import register_to_config as register_to_config


def is_configured(kind: type[Any]) -> bool:
    """Whether a class keeps the arguments of its ``__init__`` as ``config``, by our base class or by diffusers'."""
    if issubclass(kind, ConfigMixin):
        return True
    diffusers = sys.modules.get("diffusers.configuration_utils")  # only who imported it can have such a class
    return diffusers is not None and issubclass(kind, diffusers.ConfigMixin)
