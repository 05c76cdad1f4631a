"""A MongoDB-protocol server in a process of its own (SecantusDB), for the tests."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure

PROGRAM = Path(sys.executable).with_name("secantusd-py")
PATIENCE = 30.0


class MongoServer:
    """A server on a loopback port with its data in ``folder``; it can be killed and started again there."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"mongodb://127.0.0.1:{self.port}/"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> Self:
        """Starts it and waits until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "server.log"
        with log.open("ab") as written:
            self._process = subprocess.Popen(
                [
                    PROGRAM,
                    *("--host", "127.0.0.1", "--port", str(self.port), "--storage-path", self._folder / "data"),
                    *("--cache-size", "128M", "--log-level", "WARNING", *self._options, *options),
                ],
                stdout=written,
                stderr=written,
                cwd=self._folder,  # where it looks for its configuration first
            )
        deadline = time.monotonic() + PATIENCE
        with MongoClient[Any](self.url, serverSelectionTimeoutMS=250, serverMonitoringMode="poll") as client:
            while True:
                try:
                    client.admin.command("ping")
                except ConnectionFailure:
                    if self._process.poll() is not None or time.monotonic() > deadline:
                        self.kill()
                        raise RuntimeError(f"{PROGRAM.name} does not answer: {log.read_text()}") from None
                else:
                    return self

    def stop(self) -> None:
        """Ends it in order, or not, where it takes too long."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
