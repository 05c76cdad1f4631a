"""A supervisor of a few processes: started in order, watched, started again with back-off, stopped in reverse.

It knows nothing of Prefect or MLflow. It is one thread that looks every second; what it knows stands in the state
file (``deployments.stack_state``), what it does in ``<home>/logs/stack.log``, what the parts say in
``<home>/logs/<part>.log``. Those are cut when they grow: the last ``KEPT`` cuts stay beside them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from deployments import stack_state
from deployments.stack_state import MARK, PartState, PartWord, StackState
from tasks import log_lines
from trading.errors import ConfigurationError

TICK_SECONDS: Final = 1.0
READY_SECONDS: Final = 120.0
STOP_SECONDS: Final = 10.0
# so many new starts within so many seconds, and a part is given up
RESTARTS: Final = 5
RESTART_SECONDS: Final = 600.0
LONGEST_PAUSE: Final = 60.0
# a part that lives and does not answer: asked so often, given up after so many refusals in a row
PROBE_SECONDS: Final = 20.0
REFUSALS: Final = 6
LOG_BYTES: Final = 10_000_000
KEPT: Final = 3


@dataclass(frozen=True)
class Part:
    """One process to keep.

    Attributes:
        ready: asks it something real; gets the time of its start (seconds since the epoch).
        after: parts that must be ready before it starts, and without which its silence is not its own fault.
        once: it ends by itself, with 0; that is when it is ready.
        children_first: at the end its children are stopped before it, so that it can say what became of them.
        orphans_stay: when it dies its children go on, and are let.
        stop_seconds: how long it may take to stop, where that is not ``STOP_SECONDS``.
    """

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]
    ready: Callable[[float], bool]
    url: str | None = None
    after: tuple[str, ...] = ()
    once: bool = False
    children_first: bool = False
    orphans_stay: bool = False
    stop_seconds: float | None = None


@dataclass
class _Watch:
    """What the supervisor remembers of a part."""

    part: Part
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    starts: list[float] = field(default_factory=list)
    due: float = 0.0
    asked: float = 0.0
    refusals: int = 0


class Supervisor:
    """Keeps ``parts`` running in ``home`` until told to stop."""

    def __init__(self, home: Path, parts: Sequence[Part], state: StackState, folder: Path) -> None:
        self._home, self._folder, self._state = home, folder, state
        self._watches = {part.name: _Watch(part) for part in parts}
        self._rotated = 0.0
        self._written = True
        (home / "logs").mkdir(parents=True, exist_ok=True)

    @property
    def state(self) -> StackState:
        """As it is written in the file."""
        return self._state

    def start(
        self, stop: threading.Event, tell: Callable[[str], None] = lambda _: None, patience: float = READY_SECONDS
    ) -> bool:
        """Start everything and wait, ``patience`` seconds, until each part is ready; False when told to stop meanwhile.

        Raises:
            ConfigurationError: a part ended, or was not ready in time; names its log. The others run on:
                call ``stop``.
            OSError: a process cannot be made, or the state cannot be written; likewise.
        """
        begun = time.monotonic()
        waiting = dict(self._watches)
        while waiting and not stop.is_set():
            for name, watch in list(waiting.items()):
                if watch.process is None:
                    if not waiting.keys() & set(watch.part.after):
                        self._begin(watch)
                    continue
                code = watch.process.poll()
                if code is not None and not (watch.part.once and code == 0):
                    raise ConfigurationError(f"{name} ended with code {code}: {self._last_words(name)}")
                if code == 0 if watch.part.once else watch.part.ready(watch.started):
                    del waiting[name]
                    if watch.part.once:
                        watch.process = None
                    self._mark(watch, "done" if watch.part.once else "ready")
                    tell(f"{name:<10}{'done' if watch.part.once else 'ready'} after {time.monotonic() - begun:.1f} s")
                elif time.monotonic() - begun > patience:
                    raise ConfigurationError(f"{name} was not ready within {patience:.0f} s; {self._log(name)}")
            stop.wait(0.1)
        if not waiting:
            self._say(f"all ready after {time.monotonic() - begun:.1f} s")
            self._state = replace(self._state, state="ready")
            stack_state.write(self._home, self._state)
        return not waiting

    def keep(self, stop: threading.Event) -> None:
        """Watch until told to stop. What the system refuses meanwhile (a full disk) is said, and tried again."""
        while not stop.wait(TICK_SECONDS):
            for watch in self._watches.values():
                with self._saying(f"{watch.part.name} cannot be looked at"):
                    self._look(watch)
            if not self._written:
                self._write()
            if time.monotonic() - self._rotated > 60:
                self._rotated = time.monotonic()
                with self._saying("the logs cannot be listed"):
                    for log in sorted((self._home / "logs").glob("*.log")):
                        self._rotate(log)

    def stop(self) -> None:
        """Stop every part, last started first, and whatever they left; removes the state file."""
        self._state = replace(self._state, state="stopping")
        try:
            self._write()
        finally:
            # nobody watches them any more, whatever became of the file
            for watch in reversed(list(self._watches.values())):
                with self._saying(f"{watch.part.name} cannot be stopped in order"):
                    self._end(watch)
            killed = stack_state.stop(stack_state.family(self._state), STOP_SECONDS)
        self._say("stopped" + (f"; had to kill {killed}" if killed else ""))
        with self._saying("the state file cannot be removed"):
            stack_state.file(self._home).unlink(missing_ok=True)

    def _begin(self, watch: _Watch) -> None:
        part = watch.part
        self._rotate(self._log(part.name))
        with self._log(part.name).open("ab") as log:
            watch.process = subprocess.Popen(
                list(part.command),
                env={**part.variables, MARK: self._state.id},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # our own signal must not reach them: they are stopped in order
                start_new_session=True,
            )
        watch.started, watch.asked, watch.refusals = time.time(), time.monotonic(), 0
        self._say(f"{part.name} started as process {watch.process.pid}")
        self._mark(watch, "starting")

    def _begin_again(self, watch: _Watch) -> None:
        try:
            self._begin(watch)
        except OSError as error:
            self._lost(watch, f"cannot be started: {error}")

    def _look(self, watch: _Watch) -> None:
        name, now = watch.part.name, time.monotonic()
        word = self._state.parts[name].state
        if watch.part.once or word == "failed":
            return
        if watch.process is None:
            if now >= watch.due:
                self._begin_again(watch)
            return
        code = watch.process.poll()
        if code is not None:
            self._lost(watch, f"ended with {_spoken(code)}")
            return
        if word == "ready" and now - watch.asked < PROBE_SECONDS:
            return
        watch.asked = now
        others_well = all(self._state.parts[other].state in ("ready", "done") for other in watch.part.after)
        if watch.part.ready(watch.started):
            watch.refusals = 0
            if word != "ready":
                self._mark(watch, "ready")
                self._say(f"{name} is ready")
        elif not others_well:
            watch.refusals = 0
        elif word == "starting":
            if time.time() - watch.started > READY_SECONDS:
                self._lost(watch, f"was not ready within {READY_SECONDS:.0f} s")
        else:
            watch.refusals += 1
            if watch.refusals >= REFUSALS:
                self._lost(watch, f"lived and did not answer {REFUSALS} times")

    def _lost(self, watch: _Watch, why: str) -> None:
        """A part is gone, or must go: plan its next start, or give it up."""
        name = watch.part.name
        self._say(f"{name} {why}")
        self._end(watch)
        now = time.monotonic()
        watch.starts = [moment for moment in watch.starts if now - moment < RESTART_SECONDS] + [now]
        if len(watch.starts) > RESTARTS:
            self._say(f"{name} is given up after {RESTARTS} new starts in {RESTART_SECONDS / 60:.0f} minutes")
            self._mark(watch, "failed", told=why)
            return
        pause = min(2.0 ** (len(watch.starts) - 1), LONGEST_PAUSE)
        watch.due = now + pause
        self._say(f"{name} starts again in {pause:.0f} s")
        self._mark(watch, "waiting", told=why, restarts=self._state.parts[name].restarts + 1)

    def _end(self, watch: _Watch) -> None:
        """Stop a part and, in the session that it leads, all that it started."""
        if watch.process is None:
            return
        others = [] if watch.part.orphans_stay and self._state.state != "stopping" else _session(watch.process.pid)
        if watch.part.children_first:
            stack_state.stop(others, STOP_SECONDS)
        if watch.process.poll() is None:
            watch.process.terminate()
            try:
                watch.process.wait(watch.part.stop_seconds or STOP_SECONDS)
            except subprocess.TimeoutExpired:
                watch.process.kill()
                watch.process.wait()
        if not (watch.part.orphans_stay and self._state.state != "stopping"):
            stack_state.stop(_session(watch.process.pid), STOP_SECONDS)
        self._say(f"{watch.part.name} (process {watch.process.pid}) is stopped")
        watch.process = None

    def _mark(self, watch: _Watch, word: PartWord, **changes: Any) -> None:
        process = watch.process
        before = self._state.parts.get(watch.part.name, PartState(word, 0.0, url=watch.part.url))
        pid = process.pid if process and process.poll() is None else None
        after = replace(before, state=word, since=time.time(), pid=pid, born=_born(pid), **changes)
        self._state = replace(self._state, parts={**self._state.parts, watch.part.name: after})
        self._write()

    def _write(self) -> None:
        """Write the state down; where that fails it is said once, and tried again at each tick."""
        try:
            stack_state.write(self._home, self._state)
        except OSError as error:
            if self._written:
                self._say(f"the state cannot be written: {error}")
            self._written = False
        else:
            self._written = True

    def _rotate(self, log: Path) -> None:
        with self._saying(f"{log.name} cannot be cut"):
            rotate(log)

    @contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        """Say what the system refuses, and go on: a full disk must not end the watch."""
        try:
            yield
        except OSError as error:
            self._say(f"{what}: {error}")

    def _log(self, name: str) -> Path:
        return self._home / "logs" / f"{name}.log"

    def _last_words(self, name: str) -> str:
        text = self._log(name).read_text(errors="replace").strip()
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"{' / '.join(lines[-2:])[-400:] or 'it said nothing'} ({self._log(name)})"

    def _say(self, line: str) -> None:
        """To the log, or else to standard error, or else to nobody."""
        text = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}"
        if os.environ.get("TRADEFLOWS_LOG_FORMAT") == "json":
            text = log_lines.line(line, level="info", logger="stack", at=time.time())
        try:
            with self._log("stack").open("a") as log:
                log.write(f"{text}\n")
        except OSError:
            with suppress(OSError):
                # not through sys.stderr: what it could not write it would try again, and fail again, at the end
                os.write(2, f"{text}\n".encode())


def rotate(log: Path, *, limit: int = LOG_BYTES, kept: int = KEPT) -> bool:
    """Cut a log that has grown beyond ``limit`` bytes, and keep what it held as ``<log>.1``; whether it was cut.

    It is copied and emptied, for its writer holds it open (to append). Where it cannot be copied (OSError), it and the
    older cuts stay as they are.
    """
    if not log.exists() or log.stat().st_size <= limit:
        return False
    fresh = log.with_name(f"{log.name}.new")
    try:
        shutil.copyfile(log, fresh)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    for number in range(kept - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    fresh.replace(log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)
    return True


def _session(leader: int) -> list[psutil.Process]:
    """The living processes of a session but its leader; orphans are in it still."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != leader and os.getsid(process.pid) == leader:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _born(pid: int | None) -> float | None:
    try:
        return psutil.Process(pid).create_time() if pid else None
    except psutil.Error:
        return None


def _spoken(code: int) -> str:
    return f"code {code}" if code >= 0 else f"signal {-code}"
