"""Lets a ``flax.nnx`` network stand where a linen module is expected."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import nnx


class NnxModel(nn.Module):
    """A linen module around a network of ``flax.nnx``.

        model = cf.NnxModel(Net, {"num_classes": 10})

    Its parameters (``nnx.Param``) are the collection ``params``, its running statistics
    (``nnx.BatchStat``) ``batch_stats``; every other kind of variable is a collection
    named by its type, such as ``cache``. In training the network is in the mode of
    ``train()``, otherwise in that of ``eval()``. Its random streams begin anew at every
    call from the key of that call, so that a run resumes with the same bits.

    Attributes:
      make: the class of the network or a function that makes it; takes ``rngs``.
      arguments: the other keyword arguments of ``make``.
    """

    make: Callable[..., nnx.Module]
    arguments: Mapping[str, Any]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits [N, K] of images [N, H, W, C]."""
        if self.is_initializing():
            network = self._build(nnx.Rngs(self.make_rng("params")))
            self._store(network)  # the call below changes statistics
            return _call(network, images, False)
        graph, state = nnx.split(nnx.eval_shape(lambda: self._build(nnx.Rngs(0))))
        key = self.make_rng("dropout") if train else jax.random.key(0)
        values = {}
        for number, (path, variable) in enumerate(nnx.to_flat_state(state)):
            values[path] = variable.replace(self._value(path, variable, key, number))
        network = nnx.merge(graph, nnx.from_flat_state(values))
        logits = _call(network, images, train)
        self._store(network)
        return logits

    def check(self) -> None:
        """Raises what ``make`` raises, or a TypeError if it makes something else."""
        made = nnx.eval_shape(lambda: self._build(nnx.Rngs(0)))
        if not isinstance(made, nnx.Module):
            raise TypeError(f"it makes a {type(made).__name__}, not an nnx module")

    def _build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.make(**self.arguments, rngs=rngs)

    def _value(self, path: Any, variable: Any, key: jax.Array, number: int) -> Any:
        """Returns the value of a variable for a call."""
        if isinstance(variable, nnx.RngKey):
            return jax.random.fold_in(key, number)
        if isinstance(variable, nnx.RngCount):
            return jax.numpy.zeros((), jax.numpy.uint32)
        first, *rest = map(str, path)
        tree: Any = self.get_variable(_collection(variable), first)
        return functools.reduce(lambda node, name: node[name], rest, tree)

    def _store(self, network: nnx.Module) -> None:
        """Writes the variables of the network to the mutable collections."""
        trees: dict[tuple[str, str], Any] = {}
        for path, variable in nnx.to_flat_state(nnx.state(network)):
            if isinstance(variable, nnx.RngState):
                continue
            first, *rest = map(str, path)
            at = _collection(variable), first
            if not rest:
                trees[at] = variable.get_value()
                continue
            node = trees.setdefault(at, {})
            for name in rest[:-1]:
                node = node.setdefault(name, {})
            node[rest[-1]] = variable.get_value()
        for (collection, name), tree in trees.items():
            if self.is_mutable_collection(collection):
                self.put_variable(collection, name, tree)


def _call(network: Any, images: jax.Array, train: bool) -> jax.Array:
    network.train() if train else network.eval()
    takes_train = "train" in inspect.signature(network).parameters
    return network(images, train=train) if takes_train else network(images)


def _collection(variable: nnx.Variable) -> str:
    return nnx.variablelib.variable_name_from_type(type(variable), allow_register=True)
