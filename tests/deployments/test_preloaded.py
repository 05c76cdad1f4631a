"""The warm process: flow runs are forks of it, and share its memory."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.declared import CHECKOUT

pytestmark = pytest.mark.integration


def collected() -> None:
    """In a fork: what of its memory is its own after a collection of everything, MiB; print it."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split()[0].rstrip(":"): int(line.split()[1]) / 1024 for line in lines}
    shared = found["Shared_Clean"] + found["Shared_Dirty"]
    print(found["Private_Dirty"], shared, "mlflow" in sys.modules, flush=True)


def main() -> None:
    """In a process of its own: fork as the warm worker does."""
    from deployments.warm_worker import PRELOAD

    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([*PRELOAD, "tests.deployments.test_preloaded"])
    from tests.deployments import test_preloaded

    for _ in range(2):
        fork = forks.Process(target=test_preloaded.collected)
        fork.start()
        fork.join()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what pages are shared")
def test_a_fork_s_collection_copies_little_of_what_it_shares(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tests.deployments.test_preloaded import main; main()"],
        cwd=CHECKOUT,
        env={**os.environ, "TRADEFLOWS_HOME": str(tmp_path), "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    own, shared, warm = done.stdout.splitlines()[-1].split()
    assert warm == "True", done.stderr
    # without the freeze it is about 100 of 200
    assert float(own) < 30 < 150 < float(shared)
