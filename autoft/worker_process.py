"""A worker's process: connects to the driver, makes its `Worker`, and runs tasks until it is asked to end or is alone.

Who starts it is in `processes.py`, what is exchanged in `engine.py`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Client, Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoft.engine import Equipment, Message, Task
    from autoft.worker import Outcome


def main(given: Mapping[str, Any]) -> None:
    """Run tasks, one after another.

    Args:
        given: `name`, `worker`, `address` and `key` (in hexadecimal) of the connection, and the seconds between two beats
            (`beat`), from the driver.
    """
    began = time.monotonic()
    # connected before anything heavy is imported, so that a worker left alone notices even while it starts
    connection = Client(given["address"], authkey=bytes.fromhex(given["key"]))
    connection.send_bytes(given["name"].encode())
    driver = _Driver(connection)
    threading.Thread(target=driver.beat, args=(float(given["beat"]),), name="autoft-beat", daemon=True).start()
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    stopping = threading.Event()
    threading.Thread(target=_watch, args=(connection, inbox, stopping), name="autoft-watch", daemon=True).start()

    import torch

    from autoft.engine import Ended, Epoch, Ready, equip

    content = inbox.get()
    if content is None:
        return
    setup = pickle.loads(content)
    torch.set_num_threads(setup.threads)
    worker = int(given["worker"])
    equipment = equip(setup, worker)
    del setup, content
    driver.tell(Ready(worker, time.monotonic() - began))
    while (content := inbox.get()) is not None:
        task: Task = pickle.loads(content)

        def tell(report: Any, number: int = task.number) -> None:
            driver.tell(Epoch(worker, number, report))

        outcome = _run(equipment, task, tell, stopping)
        driver.tell(Ended(worker, task.number, outcome))


class _Driver:
    """What this process tells the driver; two threads may tell something at a time.

    Args:
        connection: To it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def tell(self, message: Message) -> None:
        """Send a message."""
        self._send(pickle.dumps(message))

    def beat(self, seconds: float) -> None:
        """Tell ever again that this process runs: it keeps its task only as long as it does."""
        with contextlib.suppress(OSError):  # the driver is gone: `_watch` ends the process
            while True:
                self._send(b"")  # `processes.BEAT`
                time.sleep(seconds)

    def _send(self, content: bytes) -> None:
        with self._lock:
            self._connection.send_bytes(content)


def _watch(connection: Connection, inbox: queue.SimpleQueue[bytes | None], stopping: threading.Event) -> None:
    """Take what the driver sends, also during training; end the process at once when the driver is gone."""
    try:
        while True:
            content = connection.recv_bytes()
            if not content:  # `processes.STOP`
                stopping.set()
                inbox.put(None)
            else:
                inbox.put(content)
    except (OSError, EOFError):
        # not at the next step: nobody waits for it, and files are written whole or not at all
        os._exit(1)


def _run(equipment: Equipment, task: Task, tell: Any, stopping: threading.Event) -> Outcome:
    """Run a task; what even `Worker.run` lets through, such as a damaged result, must not end the process."""
    from autoft.engine import run_task
    from autoft.worker import Outcome, failure_of

    began = time.monotonic()
    try:
        return run_task(equipment, task, tell, stopping.is_set)
    except Exception as error:  # noqa: BLE001 - typed and handed to the driver
        failure = failure_of(error)
        return Outcome("failed", None, 0, time.monotonic() - began, failure.kind, failure)
