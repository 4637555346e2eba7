"""How a model is called.

A model is a linen module that maps normalised images [N, H, W, C] to logits [N, K]. It
may take ``train`` as a keyword, hold any collections beside ``params``, and draw from
any random streams while it trains.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from cifar_flax.errors import UserError
from cifar_flax.layers import BatchNorm
from cifar_flax.layers.conv import Lowering, convolving

# Other libraries' names of what is called ``train`` here.
_OTHER_NAMES = ("deterministic", "training", "is_training", "use_running_average")


def init_variables(model: nn.Module, key: jax.Array, images: jax.Array) -> Any:
    """The model's variables, by collection; ``batch_stats`` is there, maybe empty."""
    variables = model.init(key, images, **train_argument(model, False))
    return {"batch_stats": {}, **variables}


def evaluate_logits(
    model: nn.Module, variables: Any, images: jax.Array, lowering: Lowering = "auto"
) -> jax.Array:
    """Logits [N, K] in evaluation: nothing is drawn and nothing is updated."""
    with convolving(lowering):
        logits: Any = model.apply(variables, images, **train_argument(model, False))
    return logits


def train_logits(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    key: jax.Array,
    lowering: Lowering = "auto",
    is_frozen: Callable[[str], bool] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Logits [N, K] in training, and the collections as the model left them.

    Args:
      model: see the module.
      variables: of all collections.
      images: normalised, [N, H, W, C].
      key: for all that the model draws.
      lowering: of its convolutions.
      is_frozen: tells by its path whether a parameter is frozen; the batch norms whose
        scales are normalise with their running statistics, and do not update them.
        None: there are none.
    """
    collections = {n: value for n, value in variables.items() if n != "params"}
    # Linen takes the stream "params" for every stream that has no key of its own.
    streams = {"dropout": key, "params": jax.random.fold_in(key, 1)}
    with convolving(lowering), _freezing(is_frozen):
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
            # The layer is a copy that this one call of the model has made.
            if isinstance(layer, nn.BatchNorm):
                object.__setattr__(layer, "use_running_average", True)
                kwargs.pop("use_running_average", None)
            else:
                object.__setattr__(layer, "frozen", True)
        return call(*args, **kwargs)

    return nn.intercept_methods(freeze)


def train_argument(model: nn.Module, train: bool) -> dict[str, Any]:
    """The keyword ``train``, for a model that takes it.

    Raises:
      UserError: it takes the same under another name, and would not be told.
    """
    # flax.nnx.bridge.ToLinen passes all on to the module that it holds.
    called = getattr(model, "nnx_class", type(model))
    parameters = inspect.signature(called.__call__).parameters
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    # nn.Sequential would pass it on to its first layer, whatever that is.
    if "train" in parameters or (passes_on and not isinstance(model, nn.Sequential)):
        return {"train": train}
    if other := [name for name in _OTHER_NAMES if name in parameters]:
        raise UserError(
            f"its __call__ takes {other[0]!r}, and only 'train' is given; name the "
            "argument so"
        )
    return {}
