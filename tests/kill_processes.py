"""Kills a process of runs with several processes, again and again.

    python -m tests.kill_processes --kills=20 --seed=1

Each run is started with ``--resume=auto`` until it is finished, and must then have
the results of an undisturbed run. The processes are on this machine, and each
has one device of a CPU.
"""

import argparse
import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from cifar_flax import records
from tests import archives
from tests.kill import everything_but_times

ROOT = pathlib.Path(__file__).parents[1]


def environment(devices: int) -> dict[str, str]:
    """Returns the environment of a process with a number of CPU devices."""
    words = [f"--xla_force_host_platform_device_count={devices}"]
    words += ["--xla_backend_optimization_level=0"]
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(words)}


def command(
    folder: pathlib.Path, flags: Sequence[str], devices: int = 1
) -> subprocess.CompletedProcess:
    """Runs a command in one process to its end."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", f"--workdir={folder}", *flags],
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        check=False,
    )


class Group:
    """Processes that train a run together.

    Attributes:
      processes: in their order.
    """

    def __init__(
        self,
        count: int,
        folder: pathlib.Path,
        flags: Sequence[str],
        own: Sequence[Sequence[str]] = (),
        devices: int = 1,
    ):
        """Starts them.

        Args:
          count: of the processes.
          folder: of the run.
          flags: of all.
          own: flags of each.
          devices: of each.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._folder, self._said = folder, tempfile.mkdtemp()
        self.processes = []
        for number in range(count):
            words = [f"--workdir={folder}", *flags, *(own[number] if own else [])]
            words += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
            with open(self._path(number), "w") as output:
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "experiments.run", *words),
                        f"--process_id={number}",
                    ],
                    cwd=ROOT,
                    env=environment(devices),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _path(self, number: int) -> pathlib.Path:
        return pathlib.Path(self._said, f"{number}.txt")

    def said(self, number: int) -> str:
        """Returns what a process has printed so far."""
        return self._path(number).read_text(errors="replace")

    def wait(self) -> list[int]:
        """Waits for all processes; returns their statuses."""
        return [process.wait(120) for process in self.processes]

    def wait_for_lines(self, count: int) -> None:
        """Waits until the log has a number of lines, or a process has ended."""
        while all(process.poll() is None for process in self.processes):
            if len(records.read_metrics(self._folder)) >= count:
                return
            time.sleep(0.05)


def numbers(folder: pathlib.Path) -> list[dict]:
    """Returns metrics and result without devices and times."""
    lines = everything_but_times(folder)
    return [{k: v for k, v in line.items() if k != "device"} for line in lines]


def go(
    count: int, folder: pathlib.Path, flags: Sequence[str], devices: int = 1
) -> list[int]:
    """Runs a number of processes; returns their statuses."""
    if count == 1:
        return [command(folder, flags, devices).returncode]
    with Group(count, folder, flags, devices=devices) as group:
        return group.wait()


def disturb(
    folder: pathlib.Path, flags: Sequence[str], count: int, rng: random.Random
) -> Iterator[float]:
    """Runs to the end, and kills a process of each group except the last.

    Yields:
      For each kill, the seconds until the other processes had ended.
    """
    while True:
        with Group(count, folder, [*flags, "--resume=auto"]) as group:
            deadline = time.monotonic() + rng.uniform(2, 20)
            while time.monotonic() < deadline:
                if all(process.poll() is not None for process in group.processes):
                    break
                time.sleep(0.05)
            victim = rng.choice(group.processes)
            if victim.poll() is None:
                victim.kill()
                begin = time.monotonic()
                group.wait()
                yield time.monotonic() - begin
            assert all(status is not None for status in group.wait())
        if records.read_result(folder) is not None:
            return


def main() -> None:
    """Kills processes, and compares each run that ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2, help="processes of a run")
    given = parser.parse_args()
    rng, waits, ended = random.Random(given.seed), [], 0
    with tempfile.TemporaryDirectory() as place, contextlib.suppress(KeyboardInterrupt):
        top = pathlib.Path(place)
        flags = ["--model=convbn", "--lr=0.01", "--epochs=40", "--batch_size=32"]
        flags += [*archives.tiny_data(top), "--seeds=0,1,2"]
        assert go(1, top / "undisturbed", flags) == [0]
        expected = numbers(top / "undisturbed")
        while len(waits) < given.kills:
            folder = top / f"run-{ended}"
            waits += disturb(folder, flags, given.count, rng)
            assert numbers(folder) == expected
            ended += 1
            print(f"{len(waits)} kills, {ended} runs ended as the undisturbed one")
    print(f"the others ended within {max(waits):.1f} s")


if __name__ == "__main__":
    main()
