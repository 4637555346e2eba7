"""Reads from a trace of JAX's profiler how long each kernel took."""

import collections
import pathlib

from jax.profiler import ProfileData

# The first kind with a part of its name in a kernel's name is the kernel's.
KINDS = {
    "copy and layout": ("memcpy", "memset", "copy", "transpose", "tonhwc", "tonchw"),
    "convolution": ("convol", "conv2d", "fprop", "dgrad", "wgrad", "cudnn"),
    "matrix product": ("gemm", "cublas", "cutlass", "matmul", "dot"),
    "sort": ("sort", "radix"),
    "pooling": ("pool", "select_and_scatter", "select-and-scatter", "window"),
    "gather and scatter": ("gather", "scatter", "dynamic"),
    "reduction": ("reduce", "reduction"),
    "other fusion": ("fusion", "loop_", "wrapped"),
}


def times_by_kernel(folder: pathlib.Path) -> dict[str, float]:
    """Returns the seconds of each kernel, by its name.

    On an accelerator these are the events of the device's streams. On a CPU they are
    the operations of the compiled program.
    """
    found: dict[str, float] = collections.defaultdict(float)
    for path in folder.rglob("*.xplane.pb"):
        planes = list(ProfileData.from_file(str(path)).planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in devices or planes:
            for line in plane.lines:
                if devices and not (line.name or "").startswith("Stream"):
                    continue  # such as a summary by module
                for event in line.events:
                    if devices or any(name == "hlo_op" for name, _ in event.stats):
                        found[event.name] += event.duration_ns * 1e-9
    return dict(found)


def times_by_kind(kernels: dict[str, float]) -> dict[str, float]:
    """Returns the share of each kind of kernel in their time, the largest first."""
    total, found = sum(kernels.values()), collections.defaultdict[str, float](float)
    for name, seconds in kernels.items():
        found[kind_of(name)] += seconds / total
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def kind_of(kernel: str) -> str:
    """Returns the kind of a kernel by its name."""
    low = kernel.lower()
    kinds = (kind for kind, parts in KINDS.items() if any(p in low for p in parts))
    return next(kinds, "other")
