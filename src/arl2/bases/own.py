"""What a command needs of diffusers' base classes, under the same names. Nothing here can save a model."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Config(OrderedDict[str, Any]):
    """The arguments of a class, as items and as attributes. It is not changed after it is made."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"This config has no setting {name!r}; it has {', '.join(self)}.") from None


class ConfigMixin:
    """Keeps the arguments of ``__init__`` as ``config``; see :func:`register_to_config`."""

    _settings: Config

    @property
    def config(self) -> Config:
        """The arguments that the object was made with, defaults included."""
        return self._settings


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorator of an ``__init__`` whose arguments become ``config``, before its body runs."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def configured(self: ConfigMixin, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        names = list(given.arguments)[1:]
        # The module is not initialised yet, and its own __setattr__ needs that.
        object.__setattr__(self, "_settings", Config({name: given.arguments[name] for name in names}))
        init(self, *args, **kwargs)

    return configured


class ModelMixin(nn.Module):
    """A module that knows its dtype and device."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its first parameter."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of its first parameter."""
        return next(self.parameters()).device


class DiffusionPipeline:
    """Components by name that go to a device together."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._progress: dict[str, Any] = {}

    def register_modules(self, **components: Any) -> None:
        """Make each an attribute."""
        self._names += tuple(components)
        for name, component in components.items():
            setattr(self, name, component)

    @property
    def components(self) -> dict[str, Any]:
        """The registered components by name."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def device(self) -> torch.device:
        """Of the first component that has weights."""
        weights = (weight for part in self._modules() for weight in part.parameters())
        return next(weights, torch.empty(0)).device

    def to(self, device: str | torch.device) -> "DiffusionPipeline":
        """Move the components that are modules."""
        for part in self._modules():
            part.to(device)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """Keywords of the library tqdm for ``progress_bar``."""
        self._progress = config

    def progress_bar(self, *, total: int) -> Any:
        """A bar of ``total`` steps on standard error."""
        from tqdm.auto import tqdm

        return tqdm(total=total, **self._progress)

    def _modules(self) -> list[nn.Module]:
        return [part for part in self.components.values() if isinstance(part, nn.Module)]


class BaseOutput:
    """Base of a dataclass that a call returns."""
