"""How a model is called.

A model is a linen module that maps normalised images [N, H, W, C] to logits [N, K]. It
may take ``train`` as a keyword, hold any collections besides ``params``, and draw from
any random streams in training.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.core
import flax.linen as nn
import jax

from cifar_flax.errors import UserError, in_words
from cifar_flax.layers import BatchNorm
from cifar_flax.models.streams import Stream

# Names that other libraries use instead of ``train``.
_OTHER_NAMES = ("deterministic", "training", "is_training", "use_running_average")


def init_variables(model: nn.Module, key: jax.Array, images: jax.Array) -> Any:
    """Initialises the variables by collection, always including ``batch_stats``.

    What ``sow`` and ``perturb`` make is for one batch, and no variable to train with.
    """
    of_one_batch = flax.core.DenyList(("intermediates", "perturbations"))
    train = train_argument(model, False)
    variables = model.init(key, images, mutable=of_one_batch, **train)
    return {"batch_stats": {}, **variables}


def evaluate_logits(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    """Returns logits [N, K] in evaluation, without random numbers or updates."""
    logits: Any = model.apply(variables, images, **train_argument(model, False))
    return logits


def train_logits(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    key: jax.Array,
    is_frozen: Callable[[str], bool] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Returns logits [N, K] in training, and the updated collections.

    Args:
      model: see the module.
      variables: variables of all collections.
      images: normalised, [N, H, W, C].
      key: PRNG key for all random streams of the model.
      is_frozen: tells from its path whether a parameter is frozen. A batch norm with a
        frozen scale normalises with its running statistics and does not update them.
        None: no parameter is frozen.
    """
    collections = {n: value for n, value in variables.items() if n != "params"}
    # Linen uses the stream "params" for every stream without its own key.
    streams = {"dropout": key, "params": Stream.LAYERS.of(key)}
    with _freezing(is_frozen):
        logits, updated = model.apply(
            variables,
            images,
            mutable=list(collections),
            rngs=streams,
            **train_argument(model, True),
        )
    return logits, {**collections, **updated}


def _freezing(
    is_frozen: Callable[[str], bool] | None,
) -> contextlib.AbstractContextManager[Any]:
    if is_frozen is None:
        return contextlib.nullcontext()

    def freeze(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        is_norm = isinstance(layer, nn.BatchNorm | BatchNorm)
        if is_norm and is_frozen("/".join((*layer.path, "scale"))):
            # The layer is a copy that exists only for this call of the model.
            if isinstance(layer, nn.BatchNorm):
                object.__setattr__(layer, "use_running_average", True)
                kwargs.pop("use_running_average", None)
            else:
                object.__setattr__(layer, "frozen", True)
        return call(*args, **kwargs)

    return nn.intercept_methods(freeze)


def train_argument(model: nn.Module, train: bool) -> dict[str, Any]:
    """Returns the keyword argument ``train`` if the model takes it, else no argument.

    Raises:
      UserError: the model has this argument under another name and would not get it.
    """
    # flax.nnx.bridge.ToLinen passes all arguments on to the module that it wraps.
    called = getattr(model, "nnx_class", type(model))
    parameters = inspect.signature(called.__call__).parameters
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    # nn.Sequential would pass it on to its first layer, which may not take it.
    if "train" in parameters or (passes_on and not isinstance(model, nn.Sequential)):
        return {"train": train}
    if other := [name for name in _OTHER_NAMES if name in parameters]:
        raise UserError(
            f"its __call__ takes {other[0]!r}, but only 'train' is passed; rename the "
            "argument to 'train'"
        )
    return {}


def fields_in_words(model: nn.Module) -> str:
    """Returns the fields of a module in a line, equal in every process."""
    fields = [f for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
    values = {field.name: getattr(model, field.name, None) for field in fields}
    return in_words(", ".join(f"{n}={_repr(value)}" for n, value in values.items()))


def _repr(value: Any) -> str:
    return repr(value) if isinstance(value, str) else in_words(value)
