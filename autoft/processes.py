"""Workers in processes that live from task to task, with imports and decoded data warm; implements `engine.Engine`.

What a process does is in `worker_process.py`. Values travel by pickle over an authenticated connection, never through files.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from autoft.engine import Died, Ended, Epoch, Message, Ready, Refused, Setup, Task
from autoft.errors import PluginError, first_line

GRACE = 15.0  # seconds that a worker may take to its next step, validation included, before a graceful stop kills it
LEASE = 60.0  # seconds without a beat after which a worker no longer has its task: it is stopped, or stuck in the system
BEATS = 12  # in a lease
REAP = 5.0  # seconds for the system to end a process; one that it cannot end runs none of its code either
LAST_LINES = 40  # of a worker's stderr that are kept
STOP = BEAT = b""  # a message that is no pickle: to a worker, and from it
# Not `-m`: autoft itself may be found only through the driver's `sys.path`. The key comes by stdin, as other users of the
# machine can read command lines, and every program started from here would inherit the environment.
_BOOT = (
    "import json, sys; given = json.loads(sys.stdin.readline()); sys.path[:] = given['path']; "
    "from autoft.worker_process import main; main(given)"
)


class ProcessEngine:
    """Runs tasks in processes that live from task to task, with imports and decoded data warm.

    Not `multiprocessing`'s own processes: those import the caller's `__main__` again, which breaks scripts and notebooks.

    A worker holds its task by a lease, which a thread of it renews by a beat. When none came for so long, the process is
    killed, told as `Died`, and whatever else it had to say is refused.

    Args:
        lease: Its seconds; `LEASE` where None.
    """

    def __init__(self, lease: float | None = None) -> None:
        self._lease = LEASE if lease is None else lease
        self._looked = time.monotonic()
        self._setup: Setup | None = None
        self._processes: dict[int, _Process] = {}
        self._messages: queue.Queue[tuple[_Process, Message]] = queue.Queue()
        self._key = secrets.token_bytes(32)
        self._listener: Listener | None = None
        self._acceptor: threading.Thread | None = None
        self._started: dict[str, _Process] = {}  # by the name that each gives when it connects
        self._closing = False

    @property
    def pids(self) -> dict[int, int]:
        """Process numbers of the workers, by worker."""
        return {number: process.pid for number, process in self._processes.items()}

    def start(self, setup: Setup, workers: int) -> None:
        """Start processes; they import while this one goes on.

        Raises:
            PluginError: A part of the setup cannot be sent to another process.
            ValueError: They run already, or none is asked for.
        """
        if self._listener is not None or workers < 1:
            raise ValueError(f"an engine must be started once, with at least 1 worker, but got {workers}")
        self._setup = replace(setup, memory=setup.memory // workers)
        content = _pickle_setup(self._setup)
        self._listener = Listener(backlog=workers, authkey=self._key)
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="autoft-accept", daemon=True)
        self._acceptor.start()
        for number in range(workers):
            self._start_process(number, content)

    def submit(self, worker: int, task: Task) -> None:
        """Send a task to a worker; one that is still starting gets it as soon as it can, one that has died is replaced.

        Raises:
            PluginError: The task holds what cannot be sent.
            ValueError: There is no such worker, or it has a task.
        """
        process = self._processes.get(worker)
        if process is None or self._setup is None or self._listener is None:
            raise ValueError(f"a task must go to a worker that runs, but worker {worker} does not")
        if process.task is not None and not process.dead:
            raise ValueError(f"a worker takes one task at a time, but worker {worker} still has trial {process.task}")
        content = _pickled(task, f"the configuration of trial {task.number}")
        if process.dead:
            process = self._start_process(worker, _pickle_setup(self._setup))
        process.task = task.number
        process.send(content)

    def poll(self, timeout: float) -> list[Message]:
        """Return what has happened; wait for the first message at most so many seconds."""
        told: list[tuple[_Process, Message]] = []
        try:
            told.append(self._messages.get(timeout=timeout) if timeout > 0 else self._messages.get_nowait())
            while True:
                told.append(self._messages.get_nowait())
        except queue.Empty:
            pass  # everything was taken
        messages = [self._take(process, message) for process, message in told]
        return messages + self._expire(timeout)

    def _take(self, process: _Process, message: Message) -> Message:
        if process.dead:
            return Refused(message.worker, message.number if isinstance(message, Epoch | Ended) else None)
        if isinstance(message, Ready):
            process.ready = True
        elif isinstance(message, Ended):
            process.task = None
        elif isinstance(message, Died):
            message = replace(message, number=process.task, ready=process.ready)
            process.dead = True
        return message

    def _expire(self, waited: float) -> list[Message]:
        """End the workers whose lease has run out; so many seconds at most were spent on waiting for messages."""
        now, before = time.monotonic(), self._looked
        self._looked = now
        if now - before > waited + self._lease / 4:
            # this process was stopped or busy itself, and may not have taken what was told meanwhile: count anew
            for process in self._processes.values():
                process.heard = now
        expired: list[Message] = []
        for process in self._processes.values():
            silent = now - process.heard
            if silent > self._lease and not process.dead and not process.asked_to_end:
                expired.append(process.expire(silent))
        return expired

    def stop(self, *, gracefully: bool) -> None:
        """End the processes, and wait for them; with `gracefully` those in training end at their next step.

        A trial ended so is told as `Ended`, `interrupted`, and goes on from its last epoch's checkpoint later. Stopped
        already, nothing happens.
        """
        for process in self._processes.values():
            process.stop(gracefully=gracefully)
        deadline = time.monotonic() + (GRACE if gracefully else 0.0)
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
        listener, self._listener = self._listener, None
        if listener is not None and self._acceptor is not None:
            self._closing = True
            # closing the socket would not wake the thread that waits on it; a last visitor does
            with contextlib.suppress(OSError, EOFError, AuthenticationError):
                Client(listener.address, authkey=self._key).close()
            self._acceptor.join(5)
            listener.close()

    def _start_process(self, number: int, content: bytes) -> _Process:
        if self._setup is None or self._listener is None:
            raise ValueError("an engine must be started before its workers are")
        name = secrets.token_hex(8)
        process = _Process(number, content, self._messages, self._setup.threads)
        self._started[name] = process
        self._processes[number] = process
        process.hand_over(
            {
                "name": name,
                "worker": number,
                "address": self._listener.address,
                "key": self._key.hex(),
                "beat": self._lease / BEATS,
                "path": [os.path.abspath(entry) for entry in sys.path],
            }
        )
        return process

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                connection = listener.accept()
                if self._closing:
                    connection.close()
                    return
                name = connection.recv_bytes().decode()
            except (OSError, EOFError, AuthenticationError):
                if self._closing:
                    return
                continue  # a stranger, or a worker that was killed as it knocked: its end is told by who waits for it
            self._started.pop(name).connect(connection)


class _Process:
    """One worker's process, with the threads that listen to it.

    Args:
        worker: Its number.
        content: The pickled setup; dropped once it is sent.
        messages: Where what it tells goes.
        threads: For torch.
    """

    def __init__(self, worker: int, content: bytes, messages: queue.Queue[tuple[_Process, Message]], threads: int) -> None:
        self.task: int | None = None
        self.ready = False
        self.dead = False
        self.heard = time.monotonic()
        self._worker = worker
        self._messages = messages
        self._outbox = [content]  # until it is connected
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._reader: threading.Thread | None = None
        self.asked_to_end = False
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, "autoft-worker", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # a library that prints must not end up in `--json`
            stderr=subprocess.PIPE,
            # before torch is imported: OpenMP reads it once
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C is for the driver, which then asks the workers to stop
        )
        self._listening = threading.Thread(target=self._collect_lines, name=f"autoft-stderr-{worker}", daemon=True)
        self._listening.start()
        self._waiting = threading.Thread(target=self._wait, name=f"autoft-wait-{worker}", daemon=True)
        self._waiting.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def hand_over(self, given: Mapping[str, Any]) -> None:
        """Tell the process by its stdin how to connect."""
        if self._process.stdin is None:
            raise AssertionError("the process was started with a pipe for its stdin")
        with contextlib.suppress(BrokenPipeError):  # it has ended already, which `_wait` tells
            self._process.stdin.write(json.dumps(given).encode() + b"\n")
            self._process.stdin.close()

    def connect(self, connection: Connection) -> None:
        """Begin to listen; what was to be sent goes from the listening thread, as a setup may be large."""
        self._reader = threading.Thread(target=self._read, args=(connection,), name="autoft-read", daemon=True)
        self._reader.start()

    def send(self, content: bytes) -> None:
        with self._lock:
            if self._connection is None:
                self._outbox.append(content)
                return
            with contextlib.suppress(OSError):  # it has ended, which `_wait` tells
                self._connection.send_bytes(content)

    def stop(self, *, gracefully: bool) -> None:
        self.asked_to_end = True
        if gracefully and self.task is not None:
            self.send(STOP)
        else:
            self._process.kill()  # nothing is lost: files are written whole or not at all

    def expire(self, silent: float) -> Died:
        """End it for its silence of so many seconds."""
        self.asked_to_end = self.dead = True  # its end is told here
        self._process.kill()  # also ends a stopped one
        # where even that takes long, the system is stuck: the process ends before it runs another line
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP)
        return Died(self._worker, self.task, -signal.SIGKILL, self.ready, "\n".join(self._lines), silent)

    def join(self, seconds: float) -> None:
        """Wait for its end and all its messages; kill it where it does not come."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._waiting.join()

    def _collect_lines(self) -> None:
        if self._process.stderr is None:
            raise AssertionError("the process was started with a pipe for its stderr")
        with self._process.stderr as stream:
            for line in stream:
                self._lines.append(line.decode(errors="replace").rstrip())

    def _read(self, connection: Connection) -> None:
        with connection, contextlib.suppress(OSError, EOFError):  # its end, which `_wait` tells
            with self._lock:
                for content in self._outbox:
                    connection.send_bytes(content)
                self._outbox.clear()
                self._connection = connection
            while True:
                content = connection.recv_bytes()
                self.heard = time.monotonic()
                if content:  # else a beat
                    self._messages.put((self, pickle.loads(content)))

    def _wait(self) -> None:
        code = self._process.wait()
        # a program that it started may hold its stderr open; its last words are here soon, or never
        self._listening.join(1)
        if self._reader is not None:
            self._reader.join(5)  # what it told comes before its death; a child that it forked may hold the connection open
        if not self.asked_to_end:
            self._messages.put((self, Died(self._worker, None, code, False, "\n".join(self._lines))))


# --- pickling -------------------------------------------------------------------------------------------------------


def _pickle_setup(setup: Setup) -> bytes:
    """Pickle a setup; where that fails, find the part that is to blame."""
    try:
        return pickle.dumps(setup, pickle.HIGHEST_PROTOCOL)
    except Exception:
        for backbone in setup.backbones:
            _pickled(backbone.preprocessing, f"the preprocessing of {backbone.family}/{backbone.request.model}")
        _pickled(setup.targets, f"the targets of {setup.head}")
        for split, content in setup.splits.items():
            _pickled(content, f"the {split} split's samples")
        raise


def _pickled(value: object, what: str) -> bytes:
    """Pickle by the plain pickler: torch changes that of `multiprocessing`, so that tensors go as shared file handles.

    Raises:
        PluginError: It cannot be pickled.
    """
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise PluginError(
            f"what workers are given must be picklable, but {what} is not: {first_line(error)}",
            "train in this process with `workers: 0`, or report it to the plugin's author",
        ) from error
