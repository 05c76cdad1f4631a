"""The supervisor with small processes of its own: order, restarts with a bound, silence, and nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments import stack_state, supervising
from deployments.stack_state import StackState
from deployments.supervising import Part, Supervisor, rotate
from trading.errors import ConfigurationError

# starts a child that ignores SIGTERM and a session of its own, then says so and waits
STUBBORN = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c",
    "import signal, time, pathlib, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "pathlib.Path(sys.argv[1]).touch(); time.sleep(600)", sys.argv[1]], start_new_session=True)
time.sleep(600)
"""


def script(code: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, words))


def touch_and_wait(path: Path) -> tuple[str, ...]:
    return script("import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)", path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(supervising, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(supervising, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(supervising, "STOP_SECONDS", 0.5)


@pytest.fixture
def supervisor(tmp_path: Path, quick: None) -> Iterator[Callable[[Sequence[Part]], Supervisor]]:
    made: list[Supervisor] = []

    def make(parts: Sequence[Part]) -> Supervisor:
        born = psutil.Process().create_time()
        state = StackState(uuid.uuid4().hex, os.getpid(), born, time.time(), "starting", sandbox=False)
        made.append(Supervisor(tmp_path, parts, state, tmp_path))
        return made[-1]

    yield make
    for one in made:
        stack_state.stop(stack_state.family(one.state), 0.1)


def part(name: str, command: Sequence[str], ready: Callable[[float], bool], **options: Any) -> Part:
    return Part(name, command, dict(os.environ), ready, **options)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not in time"
        threading.Event().wait(0.01)


def kept(supervisor: Supervisor) -> tuple[threading.Thread, threading.Event]:
    stop = threading.Event()
    thread = threading.Thread(target=supervisor.keep, args=(stop,), daemon=True)
    thread.start()
    return thread, stop


@pytest.mark.integration
def test_parts_start_in_order_and_nothing_is_left_of_them(
    tmp_path: Path, supervisor: Callable[[Sequence[Part]], Supervisor]
) -> None:
    first, second, child = tmp_path / "first", tmp_path / "second", tmp_path / "child"
    # the second finds the first one's file, or ends with 1
    needs = "import pathlib, sys, time; pathlib.Path(sys.argv[2]).touch() if pathlib.Path(sys.argv[1]).exists() else sys.exit(1); time.sleep(600)"  # noqa: E501
    one = supervisor(
        [
            part("first", touch_and_wait(first), lambda _: first.exists()),
            part("once", script("pass"), lambda _: False, once=True),
            part("second", script(needs, first, second), lambda _: second.exists(), after=("first", "once")),
            part("third", script(STUBBORN, child), lambda _: child.exists()),
        ]
    )
    assert one.start(threading.Event())
    written = stack_state.read(tmp_path)
    assert written == one.state
    assert written is not None and written.well and written.state == "ready"
    assert {name: state.state for name, state in written.parts.items()} == {
        "first": "ready", "once": "done", "second": "ready", "third": "ready",
    }  # fmt: skip
    family = stack_state.family(written)
    # three parts, and the third one's child that is in no session of theirs
    assert len(family) == 4
    one.stop()
    assert [process for process in family if process.is_running()] == []
    assert stack_state.read(tmp_path) is None
    assert "had to kill" in (tmp_path / "logs" / "stack.log").read_text()


@pytest.mark.integration
def test_a_killed_part_starts_again_and_is_given_up_when_it_does_not_stay(
    tmp_path: Path, supervisor: Callable[[Sequence[Part]], Supervisor]
) -> None:
    path = tmp_path / "up"
    one = supervisor([part("only", touch_and_wait(path), lambda _: path.exists())])
    assert one.start(threading.Event())
    thread, stop = kept(one)
    for number in range(supervising.RESTARTS):
        before = one.state.parts["only"]
        psutil.Process(before.pid).kill()
        until(lambda n=number: one.state.parts["only"].restarts == n + 1 and one.state.parts["only"].state == "ready")
        assert one.state.parts["only"].pid != before.pid
        assert one.state.parts["only"].told == "ended with signal 9"
    psutil.Process(one.state.parts["only"].pid).kill()
    until(lambda: one.state.parts["only"].state == "failed")
    assert not one.state.well
    stop.set()
    thread.join()
    one.stop()


@pytest.mark.integration
def test_a_part_that_lives_and_does_not_answer_starts_again(
    tmp_path: Path, supervisor: Callable[[Sequence[Part]], Supervisor]
) -> None:
    path = tmp_path / "up"
    one = supervisor([part("only", touch_and_wait(path), lambda _: path.exists())])
    assert one.start(threading.Event())
    thread, stop = kept(one)
    path.unlink()  # and the next process makes it again
    until(lambda: one.state.parts["only"].restarts == 1 and one.state.parts["only"].state == "ready")
    assert "did not answer" in one.state.parts["only"].told
    stop.set()
    thread.join()
    one.stop()


@pytest.mark.integration
def test_a_full_disk_ends_neither_the_watch_nor_the_stopping(
    tmp_path: Path,
    supervisor: Callable[[Sequence[Part]], Supervisor],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path, log, fresh = tmp_path / "up", tmp_path / "logs" / "stack.log", tmp_path / f"stack.{os.getpid()}.new"
    one = supervisor([part("only", touch_and_wait(path), lambda _: path.exists())])
    assert one.start(threading.Event())
    written = stack_state.read(tmp_path)
    # nothing can be copied, said in the log, or written down
    uncut: list[str] = []

    def full(log: Path) -> bool:
        uncut.append(log.name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(supervising, "rotate", full)
    log.unlink()
    log.mkdir()
    fresh.mkdir()
    thread, stop = kept(one)
    until(lambda: "only.log" in uncut)
    psutil.Process(one.state.parts["only"].pid).kill()
    until(lambda: one.state.parts["only"].restarts == 1 and one.state.parts["only"].state == "ready")
    assert thread.is_alive()
    assert stack_state.read(tmp_path) == written
    # there is room again
    fresh.rmdir()
    until(lambda: stack_state.read(tmp_path) == one.state)
    fresh.mkdir()
    stop.set()
    thread.join()
    one.stop()
    assert stack_state.family(one.state) == []
    assert not stack_state.file(tmp_path).exists()
    told = capfd.readouterr().err
    assert "only ended with signal 9" in told
    assert "only.log cannot be cut: [Errno 28]" in told
    # once when it was full, and once when it was again: not at each tick
    assert told.count("the state cannot be written") == 2


@pytest.mark.integration
def test_what_is_no_refusal_of_the_system_is_raised_and_the_parts_are_stopped(
    tmp_path: Path, supervisor: Callable[[Sequence[Part]], Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "up"
    one = supervisor([part("only", touch_and_wait(path), lambda _: path.exists())])
    assert one.start(threading.Event())

    def wrong(*_: object) -> None:
        raise TypeError("no such state")

    monkeypatch.setattr(stack_state, "write", wrong)
    monkeypatch.setattr(supervising, "rotate", wrong)
    with pytest.raises(TypeError):
        one.keep(threading.Event())
    with pytest.raises(TypeError):
        one.stop()
    assert stack_state.family(one.state) == []


@pytest.mark.integration
@pytest.mark.parametrize(("refused", "end"), [(2, "ready"), (99, "failed")])
def test_a_part_that_cannot_be_started_again_is_tried_later_and_the_others_go_on(
    tmp_path: Path,
    supervisor: Callable[[Sequence[Part]], Supervisor],
    monkeypatch: pytest.MonkeyPatch,
    refused: int,
    end: str,
) -> None:
    ups = {name: tmp_path / name for name in ("first", "second")}
    one = supervisor([part(name, touch_and_wait(up), lambda _, up=up: up.exists()) for name, up in ups.items()])
    assert one.start(threading.Event())
    real, left = subprocess.Popen, [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))] * refused

    def scarce(*words: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return real(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", scarce)
    thread, stop = kept(one)
    psutil.Process(one.state.parts["first"].pid).kill()
    # planned after its own end and after each refusal
    planned = min(1 + refused, supervising.RESTARTS)
    until(lambda: one.state.parts["first"].state == end and one.state.parts["first"].restarts == planned)
    assert "cannot be started: [Errno" in one.state.parts["first"].told
    assert thread.is_alive()
    assert one.state.parts["second"].state == "ready"
    assert one.state.parts["second"].restarts == 0
    stop.set()
    thread.join()
    one.stop()


@pytest.mark.integration
@pytest.mark.parametrize(("patience", "ended"), [(20.0, True), (None, False)])
def test_a_part_may_take_its_own_time_to_stop(
    tmp_path: Path, supervisor: Callable[[Sequence[Part]], Supervisor], patience: float | None, ended: bool
) -> None:
    up, done = tmp_path / "up", tmp_path / "done"
    # longer than others are given here
    slow = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), pathlib.Path(sys.argv[2]).touch(), sys.exit(0)))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(600)"
    )
    one = supervisor([part("only", script(slow, up, done), lambda _: up.exists(), stop_seconds=patience)])
    assert one.start(threading.Event())
    one.stop()
    assert done.exists() is ended
    assert stack_state.family(one.state) == []


def test_a_part_that_ends_at_once_is_told_with_its_last_words(
    tmp_path: Path, supervisor: Callable[[Sequence[Part]], Supervisor]
) -> None:
    one = supervisor([part("only", script("import sys; sys.exit('no such table')"), lambda _: False)])
    with pytest.raises(ConfigurationError, match=r"only ended with code 1: no such table \(.*only.log\)"):
        one.start(threading.Event())
    one.stop()


def test_a_log_is_cut_where_it_grew_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("ab") as writer:
        for number in range(6):
            writer.write(f"{number}".encode() * 10)
            writer.flush()
            assert rotate(log, limit=9, kept=3)
        assert not rotate(log, limit=9, kept=3)
        writer.write(b"more")
    assert log.read_bytes() == b"more"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["x.log", "x.log.1", "x.log.2", "x.log.3"]
    assert (tmp_path / "x.log.1").read_text() == "5" * 10
    assert (tmp_path / "x.log.3").read_text() == "3" * 10


def test_a_log_that_cannot_be_copied_stays_with_its_older_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "x.log"
    for text in ("older", "newer"):
        log.write_text(text)
        assert rotate(log, limit=1)
    log.write_text("grown")

    def half(_: Path, target: Path) -> None:
        target.write_text("gr")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(supervising.shutil, "copyfile", half)
    with pytest.raises(OSError, match="space"):
        rotate(log, limit=1)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.log": "grown", "x.log.1": "newer", "x.log.2": "older",
    }  # fmt: skip


def test_a_process_under_a_used_again_id_is_not_taken_for_ours(tmp_path: Path) -> None:
    born = psutil.Process().create_time()
    assert stack_state.alive(os.getpid(), born)
    assert not stack_state.alive(os.getpid(), born - 1)
    state = StackState("x", os.getpid(), born - 1, time.time(), "ready", sandbox=False)
    stack_state.write(tmp_path, state)
    assert stack_state.read(tmp_path) == state
    assert not state.supervised
    assert stack_state.family(replace(state, id=uuid.uuid4().hex)) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"parts": {"a": {"b": 1}}}'])
def test_a_state_file_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    stack_state.file(tmp_path).write_text(text)
    assert stack_state.read(tmp_path) is None
