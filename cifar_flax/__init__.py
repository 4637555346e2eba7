"""A laboratory for comparing small image-classification architectures.

    import cifar_flax as cf

    settings = cf.Settings(model="convbn", seeds=(0, 1, 2))
    result = cf.run(settings, "runs/mine", observers=[cf.ConsoleDisplay()])

The public names are those of ``__init__.pyi``. They are loaded when they are first
used, so that importing the package is quick and does not import JAX.
"""

import importlib
import os
from typing import Any

from cifar_flax import forks as forks  # it must know of JAX before a fork


def _read_homes() -> dict[str, str]:
    """Returns the module of each public name.

    A line of the stub is ``from .MODULE import NAME as NAME``.
    """
    path = os.path.join(os.path.dirname(__file__), "__init__.pyi")
    with open(path, encoding="utf-8") as stub:
        lines = [line.split() for line in stub if line.startswith("from .")]
    return {name: module for _, module, _, name, _, _ in lines}


_HOMES = _read_homes()

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("cifar-flax")
    if name not in _HOMES:
        raise AttributeError(f"module 'cifar_flax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
