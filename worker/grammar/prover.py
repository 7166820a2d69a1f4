"""Keeps the trial process: one grammar at a time, killed when it takes too long, started anew when it is gone."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from worker.grammar.errors import GrammarError
from worker.grammar.trial import READY

_START_SECONDS = 60.0  # for a Python process to come up, on a machine with other things to do
_ROOT = Path(__file__).parents[2]

TOO_MUCH = "it is more than the parser can take"


class Prover:
    """`prove` on one thread; `interrupt` and `close` on any."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()  # over what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._grammar: str | None = None  # under trial
        self._closed = False

    def prove(self, grammar: str) -> None:
        """Raises GrammarError when the grammar cannot be taken, is too slow or was interrupted."""
        with self._lock:
            self._grammar = grammar
        try:
            process = self._running()
            answer = self._ask(process, grammar)
        except TimeoutError:
            self._kill()
            raise GrammarError(f"it takes longer than {self._seconds:g} s to compile") from None
        except (EOFError, BrokenPipeError):
            self._kill()
            raise GrammarError(TOO_MUCH) from None
        finally:
            with self._lock:
                self._grammar = None
        if answer is not None:
            raise GrammarError(str(answer))

    def interrupt(self, grammar: str) -> None:
        """Ends the trial of this grammar, if that is the one under trial."""
        with self._lock:
            if self._grammar == grammar and self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Ends the process, whatever it is at; there will be no other."""
        with self._lock:
            self._closed = True
            if self._grammar is not None:  # the proving thread still reads; it finds the end and clears up
                if self._process is not None:
                    self._process.kill()
                return
        self._kill()

    def _kill(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        """Raises TimeoutError or EOFError when it does not start."""
        with self._lock:
            if self._closed:
                raise EOFError
            if self._process is not None and self._process.poll() is None:
                return self._process
        self._kill()
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.grammar.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=_ROOT,
        )
        with self._lock:
            self._process = process
            if self._closed:
                process.kill()
        if _read(process, _START_SECONDS) != READY:
            raise EOFError
        return process

    def _ask(self, process: subprocess.Popen[bytes], grammar: str) -> object:
        assert process.stdin is not None
        left = memoryview(json.dumps(grammar).encode() + b"\n")
        while left:  # the process reads whenever it is not at work, and now it is not
            left = left[process.stdin.write(left) or 0 :]
        return _read(process, self._seconds)


def _read(process: subprocess.Popen[bytes], seconds: float) -> object:
    """One line. Raises TimeoutError, and EOFError when the process has ended."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(process.stdout.fileno(), 65_536)
        if not part:
            raise EOFError
        line += part
    return json.loads(line)
