"""The state of training: a tree of arrays that goes from step to step."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cifar_flax.models.calling import init_variables
from cifar_flax.models.streams import Stream


@flax.struct.dataclass
class Totals:
    """Sums over the training images seen since the last log point.

    Attributes:
      loss: sum of the loss over the images, float32.
      correct: number of correctly classified images, int32.
      count: number of images, int32.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    @classmethod
    def zero(cls) -> "Totals":
        """Returns the sums before the first image."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def cleared(self) -> "Totals":
        """Returns zeros; a loss that is NaN or infinite stays, to mark divergence."""
        finite = jnp.isfinite(self.loss)
        return jax.tree.map(lambda x: jnp.where(finite, jnp.zeros_like(x), x), self)


@flax.struct.dataclass
class TrainState:
    """The state of one replica, or of R of them with a leading axis on every array.

    Attributes:
      step: number of steps done, int32.
      params: parameters, float32.
      collections: the model's other variables by collection. ``batch_stats`` exists for
        every model, and may be empty.
      opt_state: the optimizer's state.
      key: the replica's key; every random number is a function of it and of the step.
      totals: sums since the last log point; they are part of the state so that a
        resumed run reports the same numbers.
      average: variables to evaluate, such as a moving average; None: the trained ones.
    """

    step: jax.Array
    params: Any
    collections: dict[str, Any]
    opt_state: optax.OptState
    key: jax.Array
    totals: Totals
    average: dict[str, Any] | None = None

    @property
    def trained(self) -> dict[str, Any]:
        """The variables that the next step trains."""
        return {"params": self.params, **self.collections}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to evaluate: an average, or those of the optimizer, if any."""
        return self.trained if self.average is None else self.average

    @property
    def batch_stats(self) -> Any:
        """Running statistics of batch norm; empty for a model without batch norm."""
        return self.collections["batch_stats"]

    @property
    def diverged_at(self) -> tuple[int | None, ...]:
        """For each of R replicas, the step at which it diverged, or None.

        A replica diverges if the loss of a step is NaN or infinite. It ends there.
        """
        return ended_at(self.totals, self.step)

    @property
    def all_diverged(self) -> bool:
        """Whether all R replicas have diverged."""
        return None not in self.diverged_at

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        if jnp.ndim(self.step) == 0:
            return f"TrainState(step={self.step}, {count:,} parameters)"
        replicas = len(self.step)
        words = f"{replicas} replicas, {count // replicas:,} parameters each"
        if replicas == 1:
            words = f"1 replica, {count:,} parameters"
        if isinstance(self.step, jax.core.Tracer | jax.ShapeDtypeStruct):
            return f"TrainState({words})"
        return f"TrainState(step={int(self.step.max())}, {words})"


def ended_at(totals: Totals, steps: jax.typing.ArrayLike) -> tuple[int | None, ...]:
    """Returns for each of R replicas the step at which it diverged, or None."""
    finite, steps = np.isfinite(totals.loss), np.asarray(steps)
    return tuple(None if ok else int(at) for ok, at in zip(finite, steps, strict=True))


def init_state(
    key: jax.Array,
    model: nn.Module,
    tx: optax.GradientTransformation,
    images: jax.Array,
    averages: bool = False,
) -> TrainState:
    """Returns the state of one replica before its first step.

    Args:
      key: the replica's key, ``jax.random.key(seed)``.
      model: see ``models.calling``.
      tx: the optimizer.
      images: normalised images [N, H, W, C] that initialise the model; an initialiser
        may compute its values from them.
      averages: whether evaluation reads other variables, see ``Recipe.average``.
    """
    variables = init_variables(model, Stream.INIT.of(key), images)
    params = variables.pop("params")
    return TrainState(
        step=jnp.int32(0),
        params=params,
        collections=variables,
        opt_state=tx.init(params),
        key=Stream.REPLICA.of(key),
        totals=Totals.zero(),
        average={"params": params, **variables} if averages else None,
    )


def shapes_of_state(
    variables: Any, tx: optax.GradientTransformation, averages: bool, replicas: int
) -> TrainState:
    """Returns the shapes of a state of R replicas without tracing the model again."""
    params = variables["params"]
    one = TrainState(
        step=jax.eval_shape(lambda: jnp.int32(0)),
        params=params,
        collections={n: value for n, value in variables.items() if n != "params"},
        opt_state=jax.eval_shape(tx.init, params),
        key=jax.eval_shape(lambda: jax.random.key(0)),
        totals=jax.eval_shape(Totals.zero),
        average=variables if averages else None,
    )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((replicas, *leaf.shape), leaf.dtype), one
    )
