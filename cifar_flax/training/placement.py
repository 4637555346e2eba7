"""Distributes replicas and their batches over a mesh of devices.

The mesh has the axes ``seed`` and ``data``. Each row of devices trains its own
replicas. They need no communication and get the same bits as on a device of their own.
The devices of a row share the batches of its replicas: the compiler sums their
gradients, and the statistics of batch norm, over the whole batch.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cifar_flax.errors import UserError

SEED, DATA = AXES = ("seed", "data")

# Of each kind, a process keeps at most so many compiled programs: a long sweep in one
# process must not keep them all.
MOST_PROGRAMS = 16


def default_devices() -> list[jax.Device]:
    """Returns all accelerators of all processes, or the CPU as a single device."""
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        return jax.local_devices()[:1]
    return jax.devices()


def make_mesh(
    replicas: int,
    batch_size: int,
    count: int | None = None,
    shape: Mapping[str, int] | None = None,
) -> Mesh:
    """Makes a mesh that divides first the replicas over the devices, then the batches.

    Args:
      replicas: number of replicas.
      batch_size: images in a step of each replica.
      count: number of devices to use; None for ``default_devices()``.
      shape: number of devices along ``seed`` and ``data``; None to choose it.

    Raises:
      UserError: there are fewer devices, or the batch cannot be divided.
    """
    devices = jax.devices()
    if count is not None:
        if not 1 <= count <= len(devices):
            raise UserError(
                f"--devices={count}: there are {len(devices)} of kind "
                f"{devices[0].device_kind}"
            )
        devices = devices[:count]
    elif shape is None:
        devices = default_devices()
    if shape is None:
        rows, columns = _shape_for(len(devices), replicas, batch_size)
    else:
        rows, columns = _check_shape(shape, len(devices), replicas, batch_size)
    devices = devices[: rows * columns]
    idle = set(range(jax.process_count())) - {one.process_index for one in devices}
    if idle:
        raise UserError(
            f"process {min(idle)} would have no work: {rows * columns} devices can be "
            f"used for {replicas} seeds and batches of {batch_size}; start fewer "
            "processes, or give another --batch_size"
        )
    grid = np.array(devices).reshape(rows, columns)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def _shape_for(devices: int, replicas: int, batch_size: int) -> tuple[int, int]:
    """Returns rows and columns, with as many rows as devices and replicas allow."""
    rows = max(n for n in range(1, min(devices, replicas) + 1) if devices % n == 0)
    # If a batch cannot be divided by all devices, the remaining ones are not used.
    columns = range(1, devices // rows + 1)
    return rows, max(n for n in columns if batch_size % n == 0)


def _check_shape(
    shape: Mapping[str, int], devices: int, replicas: int, batch_size: int
) -> tuple[int, int]:
    """Returns rows and columns of the mesh that the user gives."""
    given = "--mesh=" + ",".join(f"{axis}:{size}" for axis, size in shape.items())
    sizes = [shape.get(axis, 1) for axis in AXES]
    whole = all(isinstance(n, int) and n >= 1 for n in sizes)
    if set(shape) - set(AXES) or not whole:
        raise UserError(f"{given}: give devices along the axes, as seed:2,data:4")
    rows, columns = sizes
    if rows * columns > devices:
        raise UserError(
            f"{given} needs {rows * columns} devices, and there are {devices}"
        )
    if rows > replicas:
        raise UserError(
            f"{given}: {replicas} seeds can be spread over at most {replicas} devices"
        )
    if batch_size % columns:
        raise UserError(
            f"{given}: a batch of {batch_size} images cannot be divided by {columns}; "
            "give another --batch_size or mesh"
        )
    return rows, columns


def parse_mesh(text: str) -> dict[str, int]:
    """Reads the number of devices along each axis from text such as ``seed:2,data:4``.

    Raises:
      UserError: the text has another form.
    """
    words = [re.fullmatch(r"(\w+):(\d{1,9})", word) for word in text.split(",")]
    shape = {word[1]: int(word[2]) for word in words if word}
    if len(shape) < len(words):
        raise UserError(f"--mesh={text}: give devices along the axes, as seed:2,data:4")
    return shape


def replica_map(side_by_side: int | None = None) -> Callable[[Callable, Any], Any]:
    """Returns the map of a function of one replica over the leading axis of replicas.

    An accelerator runs the replicas side by side (``vmap``). A CPU runs them one after
    the other, because one replica keeps it busy and grouped convolutions are slow.

    Args:
      side_by_side: as of ``Placement``.

    Returns:
      A function like ``jax.lax.map``.
    """
    if jax.default_backend() == "cpu":
        return lax.map
    if side_by_side is None:
        return lambda fn, replicas: jax.vmap(fn)(replicas)
    return functools.partial(lax.map, batch_size=side_by_side)


def split_batch(batch: jax.Array) -> jax.Array:
    """Divides a batch between the devices of a row; see ``Placement.map``."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape[DATA] == 1:
        return batch
    return lax.with_sharding_constraint(batch, PartitionSpec(DATA))


@dataclasses.dataclass(frozen=True)
class Placement:
    """R replicas on a mesh, or on one device.

    Every row of the mesh has the same number of replicas. If R cannot be divided by the
    number of rows, copies of the last replica are added, and their results are dropped.

    Attributes:
      replicas: R.
      mesh: see ``make_mesh``; None for JAX's default device.
      side_by_side: replicas that an accelerator computes at a time; None for all.
    """

    replicas: int
    mesh: Mesh | None = None
    side_by_side: int | None = None

    @property
    def columns(self) -> int:
        """Number of devices that share a batch."""
        return 1 if self.mesh is None else self.mesh.shape[DATA]

    @property
    def devices(self) -> int:
        """Number of devices of the mesh."""
        return 1 if self.mesh is None else self.mesh.size

    def halved(self) -> "Placement":
        """Returns a placement with half of the replicas side by side, or with one."""
        rows = 1 if self.mesh is None else self.mesh.shape[SEED]
        together = self.side_by_side or -(-self.replicas // rows)
        if together == 1:
            return self
        return dataclasses.replace(self, side_by_side=-(-together // 2))

    def map(self, fn: Callable, spread: int, shared: int) -> Any:
        """Makes a program for the mesh from a function of several replicas.

        Args:
          fn: a function whose results are arrays with a leading axis of replicas. It
            must work for any number of replicas. Its work on a batch is divided between
            devices if it calls ``split_batch``.
          spread: number of leading arguments of ``fn`` that have the axis of replicas.
          shared: number of the other arguments, which are the same for all replicas.

        Returns:
          A jitted function. It takes arguments from ``self.spread`` and ``self.share``.
        """
        if self.mesh is None:
            return jax.jit(fn)
        by_seed, whole = PartitionSpec(SEED), PartitionSpec()
        mapped = jax.shard_map(
            fn,
            mesh=self.mesh,
            in_specs=(by_seed,) * spread + (whole,) * shared,
            out_specs=by_seed,
            axis_names={SEED},  # the compiler divides the axis ``data``
            check_vma=False,
        )
        return jax.jit(mapped)

    def spread(self, tree: Any) -> Any:
        """Moves arrays [R, ...] to the devices that compute the replicas."""
        if self.mesh is None:
            return tree
        rows = self.mesh.shape[SEED]
        index = np.minimum(
            np.arange(-(-self.replicas // rows) * rows), self.replicas - 1
        )
        filled = jax.tree.map(lambda leaf: leaf[index], tree)
        return _put(filled, NamedSharding(self.mesh, PartitionSpec(SEED)))

    def share(self, tree: Any) -> Any:
        """Copies arrays to all devices."""
        if self.mesh is None:
            return tree
        return _put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def collect(self, tree: Any) -> Any:
        """Gathers arrays [R, ...] from ``spread`` or a program on every device."""
        if self.mesh is None:
            return tree
        return _collector(self.replicas, self.mesh)(tree)

    def __str__(self) -> str:
        if self.mesh is None:
            return ""
        rows, columns = (self.mesh.shape[axis] for axis in AXES)
        words = [f"seeds over {rows}"] if rows > 1 else []
        words += [f"each batch over {columns}"] if columns > 1 else []
        return ", ".join(words)


@functools.lru_cache(maxsize=MOST_PROGRAMS)
def _collector(replicas: int, mesh: Mesh) -> Any:
    return jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf[:replicas], tree),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Places arrays, which are equal in all processes, according to a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(put, tree)
