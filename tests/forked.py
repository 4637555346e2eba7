"""Runs commands in forks of one process with loaded libraries, in milliseconds each.

The commands run as for a user, except that Python and the imports are already loaded.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pathlib
import re
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings

ROOT = pathlib.Path(__file__).parents[1]

# The modules that the commands import; none of them starts JAX's backend.
LIBRARIES = (
    *("cifar_flax.runs.inference", "cifar_flax.sweeps.cells"),
    *("cifar_flax.reports.page", "cifar_flax.data.shapes", "matplotlib.figure"),
    *("cifar_flax.commands.setting_flags", "cifar_flax.show.tensorboard"),
    *("orbax.checkpoint", "optax"),
)

# Limit on the memory of a command, in addition to that of the libraries.
MEMORY_BYTES = 4 * 2**30

# On a busy machine a command may take this many times its limit; then it hangs.
WALL_TIMES = 10


@contextlib.contextmanager
def server(folder):
    """A function that runs a module in a folder: ``run(module, *flags, limit=10)``.

    It returns a CompletedProcess, whose status is negative if the module was
    killed at the limit, in seconds of each core that it uses. On a busy machine, a
    command takes longer and computes no more.
    """
    settings = {
        "PYTHONPATH": str(ROOT),
        "TFDS_DATA_DIR": str(folder / "no_data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        # Addresses that refuse; nothing leaves this machine.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **settings},
    ) as process:

        def run(module, *flags, limit=10):
            words = [module, *map(str, flags)]
            process.stdin.write(json.dumps({"words": words, "limit": limit}) + "\n")
            process.stdin.flush()
            status, *texts = json.loads(process.stdout.readline())
            return subprocess.CompletedProcess(words, status, *texts)

        yield run
        process.stdin.close()


def command(name, *flags, limit=120):
    """Runs one of the commands, as ``python -m experiments.NAME`` does.

    Processes of this one share a server, which lasts as long as it does.
    """
    return _shared()(module_of(name), *flags, limit=limit)


def module_of(name):
    """Returns the module of a command, as users start it."""
    ours = ("forms", "gpu_check", "lr_grid", "torch_airbench")
    package = "benchmarks" if name in ours else "experiments"
    return f"{package}.{name}"


@functools.cache
def _shared():
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return stack.enter_context(server(pathlib.Path(folder)))


def serve():
    """Answers the requests on stdin until it is closed."""
    warnings.simplefilter("ignore")  # no thread holds a lock
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
            child = os.fork()
            if not child:
                run_child(request["words"], request["limit"], output, error)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = []
            for file in (output, error):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        print(json.dumps([status, *texts]), flush=True)


def run_child(words, limit, output, error):
    """Becomes the command; never returns."""
    cores = os.cpu_count() or 1  # the threads of a process count together
    signal.setitimer(signal.ITIMER_PROF, cores * limit)  # its signal kills the process
    signal.setitimer(signal.ITIMER_REAL, WALL_TIMES * limit)  # and so does this one
    taken = re.search(r"VmSize:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())
    most = int(taken[1]) * 1024 + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    warnings.simplefilter("default")
    os.dup2(output.fileno(), 1)
    os.dup2(error.fileno(), 2)
    module, *flags = words
    sys.argv = [module, *flags]
    sys.modules.pop(module, None)  # otherwise runpy would warn
    status = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
