"""The server that runs the commands of the tests."""

import os
import signal
import time

import pytest

from tests import forked

MODULES = {
    "waits": "import time; time.sleep(1.5); print('waited')",
    "hangs": "import time; time.sleep(60)",
    "spins": "while True: pass",
}


@pytest.mark.slow
def test_a_limit_is_of_computation_so_that_a_busy_machine_fails_no_test(tmp_path):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    with forked.server(tmp_path) as run:
        waited = run("waits", limit=1)
        assert (waited.returncode, waited.stdout) == (0, "waited\n")
        assert run("hangs", limit=0.1).returncode == -signal.SIGALRM
        start = time.monotonic()
        assert run("spins", limit=1 / (os.cpu_count() or 1)).returncode == (
            -signal.SIGPROF
        )
        assert time.monotonic() - start > 0.5
