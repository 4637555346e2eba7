"""What training carries from step to step: arrays, and nothing else."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax


@flax.struct.dataclass
class Totals:
    """Sums over the training images seen since the last log point.

    Attributes:
      loss: sum of the loss over the images, float32.
      correct: correctly classified ones, int32.
      count: how many, int32.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    @classmethod
    def zero(cls) -> "Totals":
        """Nothing seen yet."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def cleared(self) -> "Totals":
        """Zero; but what is no finite number stays, as the mark of divergence."""
        finite = jnp.isfinite(self.loss)
        return jax.tree.map(lambda x: jnp.where(finite, jnp.zeros_like(x), x), self)


@flax.struct.dataclass
class TrainState:
    """The state of one replica, or of R of them with a leading axis on every array.

    Attributes:
      step: steps done, int32.
      params: parameters, float32.
      batch_stats: running statistics; empty for a model without.
      opt_state: the optimizer's state.
      key: the replica's key; every random number is a function of it and of the step.
      totals: sums since the last log point, kept here so that a resumed run reports
        the same numbers.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array
    totals: Totals

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def diverged_at(self) -> tuple[int | None, ...]:
        """For each of R replicas the step whose loss was no finite number.

        A replica ends with that step. None for one that goes on.
        """
        finite, steps = np.isfinite(self.totals.loss), np.asarray(self.step)
        return tuple(
            None if ok else int(at) for ok, at in zip(finite, steps, strict=True)
        )

    @property
    def all_diverged(self) -> bool:
        """Whether none of the R replicas goes on."""
        return None not in self.diverged_at


def init_state(
    key: jax.Array,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state of one replica before its first step.

    Args:
      key: the replica's key, ``jax.random.key(seed)``.
      model: called as ``model.apply(variables, images, train=...)``.
      tx: the optimizer.
      image_shape: (H, W, C).
    """
    init_key, key = jax.random.split(key)
    images = jnp.zeros((1, *image_shape))
    variables = model.init(init_key, images, train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        key=key,
        totals=Totals.zero(),
    )
