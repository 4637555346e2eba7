"""Users' own models, named by their code's place; see ``own_code``."""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from cifar_flax.errors import UserError, one_line
from cifar_flax.models.nnx_model import NnxModel
from cifar_flax.own_code import load


def make_own(name: str, args: Mapping[str, Any] | None, num_classes: int) -> nn.Module:
    """Runs the code of a model and makes the model.

    Args:
      name: see ``own_code``; NAME is the class of a linen module or of an nnx module,
        or a function that makes one. What takes ``rngs`` makes an nnx module.
      args: keyword arguments; ``num_classes`` is added if NAME takes it.
      num_classes: number of logits.

    Raises:
      UserError: the code does not exist, it fails, or it makes something else.
    """
    make: Any = load(name, "model")
    given = dict(args or {})
    try:
        # The class of a class of nnx hides the arguments of its __init__.
        is_class = inspect.isclass(make)
        parameters = inspect.signature(make.__init__ if is_class else make).parameters
        if "num_classes" in parameters:
            given.setdefault("num_classes", num_classes)
        if "rngs" in parameters:  # a network of nnx, or a function that makes one
            model: Any = NnxModel(make, given)
            model.check()
        else:
            model = make(**given)
    except (Exception, SystemExit) as error:  # the code may raise anything
        raise UserError(
            f"--model={name} cannot be made with {given}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"--model={name} makes a {type(model).__name__}; it must be a module of "
            "flax.linen or of flax.nnx, whose class or function takes rngs"
        )
    return model
