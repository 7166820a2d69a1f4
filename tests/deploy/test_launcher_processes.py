"""Processes that the launcher starts are kept running, told apart, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy import supervisor
from deploy.folders import bound_log
from deploy.supervisor import Part, PartFailed, Stage, Supervised

LIMIT = 30.0  # seconds after which something that should happen is taken not to happen


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.lines: list[str] = []

    def stage(self, part: str, stage: Stage) -> None:
        if not self.stages or self.stages[-1] is not stage:
            self.stages.append(stage)

    def say(self, line: str) -> None:
        self.lines.append(line)


def part(folder: Path, program: str, start_seconds: float = LIMIT) -> Part:
    """A process that counts as ready once it has written its id to `ready`."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)

    async def probe() -> Stage:
        return Stage.READY if ready.exists() else Stage.STARTING

    command = (sys.executable, "-c", textwrap.dedent(program))
    environment = {**os.environ, "READY": str(ready)}
    return Part("worker-1", command, environment, folder / "worker-1.log", probe, start_seconds)


SERVES = """
    import os, pathlib, time
    pathlib.Path(os.environ["READY"]).write_text(str(os.getpid()))
    time.sleep(600)
"""
# Neither it nor its child leaves when asked.
STUBBORN = """
    import os, pathlib, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, lambda *_: None)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print('deaf', flush=True)"
    stays = "\\nwhile True: time.sleep(9)"
    child = subprocess.Popen([sys.executable, "-c", deaf + stays], stdout=subprocess.PIPE)
    child.stdout.readline()
    ready = pathlib.Path(os.environ["READY"])
    ready.with_suffix(".new").write_text(f"{os.getpid()} {child.pid}")
    ready.with_suffix(".new").rename(ready)
    while True:
        time.sleep(9)
"""


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def pids(folder: Path) -> list[int]:
    return [int(word) for word in (folder / "ready").read_text().split()]


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_DELAY", 0.02)


async def test_a_killed_process_is_started_again_and_said_so_in_one_line(tmp_path: Path, short_delays: None) -> None:
    seen = Seen()
    process = Supervised(part(tmp_path, SERVES), seen)
    await process.start()
    keeping = asyncio.create_task(process.keep())
    first = pids(tmp_path)[0]
    (tmp_path / "ready").unlink()
    os.kill(first, signal.SIGKILL)
    await until(lambda: seen.stages[-1] is Stage.READY and len(seen.stages) > 2)
    assert pids(tmp_path)[0] != first
    assert seen.stages == [Stage.STARTING, Stage.READY, Stage.RESTARTING, Stage.STARTING, Stage.READY]
    assert len(seen.lines) == 1
    assert seen.lines[0].startswith("worker-1 was ended by SIGKILL.")
    process.ask_to_stop()
    await asyncio.wait_for(keeping, LIMIT)
    assert gone(pids(tmp_path)[0])


async def test_a_process_that_dies_while_it_starts_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    process = Supervised(part(tmp_path, "print('loading'); raise SystemExit('no such checkpoint')"), Seen())
    with pytest.raises(PartFailed, match=r"worker-1 exited with code 1 while it started\.") as failed:
        await process.start()
    assert failed.value.tail[-1] == "no such checkpoint"


async def test_a_process_that_is_never_ready_is_not_waited_for_without_end(tmp_path: Path) -> None:
    process = Supervised(part(tmp_path, "import time; time.sleep(600)", start_seconds=0.2), Seen())
    with pytest.raises(PartFailed, match=r"not ready within 0\.2 s"):
        await process.start()
    process.kill()
    await asyncio.wait_for(process.stopped(), LIMIT)


async def test_a_process_that_keeps_crashing_is_given_up(tmp_path: Path, short_delays: None) -> None:
    seen = Seen()
    count = tmp_path / "count"
    program = f"""
        import os, pathlib
        with open({str(count)!r}, "a") as file:
            file.write("x")
        pathlib.Path(os.environ["READY"]).touch()
        raise SystemExit(3)
    """
    process = Supervised(part(tmp_path, program), seen)
    with contextlib.suppress(PartFailed):  # whether it counts as ready first is a matter of milliseconds
        await process.start()
    await asyncio.wait_for(process.keep(), LIMIT)
    assert seen.stages[-1] is Stage.GIVEN_UP
    assert "given up" in seen.lines[-1]
    assert len(count.read_text()) == 1 + supervisor.MOST_CRASHES


async def test_stopping_ends_the_children_of_a_process_too(tmp_path: Path) -> None:
    process = Supervised(part(tmp_path, STUBBORN), Seen())
    await process.start()
    keeping = asyncio.create_task(process.keep())
    family = pids(tmp_path)
    assert len(family) == 2
    process.ask_to_stop()
    process.kill()
    await asyncio.wait_for(process.stopped(), LIMIT)
    await asyncio.wait_for(keeping, LIMIT)
    await until(lambda: all(gone(pid) for pid in family))


async def test_children_of_a_crashed_process_do_not_outlive_it(tmp_path: Path, short_delays: None) -> None:
    seen = Seen()
    process = Supervised(part(tmp_path, STUBBORN), seen)
    await process.start()
    keeping = asyncio.create_task(process.keep())
    parent, child = pids(tmp_path)
    (tmp_path / "ready").unlink()
    os.kill(parent, signal.SIGKILL)
    await until(lambda: gone(child))
    await until(lambda: seen.stages[-1] is Stage.READY)
    process.ask_to_stop()
    process.kill()
    await asyncio.wait_for(keeping, LIMIT)


async def test_a_stop_during_the_delay_before_a_restart_is_heeded_at_once(tmp_path: Path) -> None:
    seen = Seen()
    process = Supervised(part(tmp_path, SERVES), seen)
    await process.start()
    keeping = asyncio.create_task(process.keep())
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    await until(lambda: seen.stages[-1] is Stage.RESTARTING)
    process.ask_to_stop()
    await asyncio.wait_for(keeping, LIMIT)
    assert seen.stages[-1] is Stage.RESTARTING


async def test_nothing_is_left_when_the_launcher_itself_is_killed(tmp_path: Path) -> None:
    program = f"""
        import asyncio, pathlib, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_launcher_processes import STUBBORN, Seen, part
        from deploy.supervisor import Supervised

        async def main():
            process = Supervised(part(pathlib.Path({str(tmp_path)!r}), STUBBORN), Seen())
            await process.start()
            print("ready", flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
    """
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    try:
        assert launcher.stdout is not None
        assert await asyncio.to_thread(launcher.stdout.readline) == b"ready\n"
        family = pids(tmp_path)
        assert not any(gone(pid) for pid in family)
    finally:
        launcher.kill()
        launcher.wait()
    await until(lambda: all(gone(pid) for pid in family))


def test_a_log_that_grows_begins_anew_and_its_writer_goes_on(tmp_path: Path) -> None:
    log, aside = tmp_path / "worker-1.log", tmp_path / "worker-1.log.1"
    with log.open("ab", buffering=0) as writer:
        for turn in ("one\n", "two\n"):
            writer.write(turn.encode() * 300)
            bound_log(log, most=1000)
            assert (log.read_text(), aside.read_text()) == ("", turn * 300)
        writer.write(b"and on\n")
        bound_log(log, most=1000)
    assert (log.read_text(), aside.read_text()) == ("and on\n", "two\n" * 300)
    assert sorted(tmp_path.iterdir()) == [log, aside]
