"""A worker's process: connects to the driver, makes its `Worker`, and runs tasks until it is asked to end or is alone.

Who starts it is in `processes.py`, what is exchanged in `engine.py`.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Client, Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoft.engine import Equipment, Task
    from autoft.worker import Outcome


def main(given: Mapping[str, Any]) -> None:
    """Run tasks, one after another.

    Args:
        given: `name`, `worker`, `address` and `key` (in hexadecimal) of the connection, from the driver.
    """
    began = time.monotonic()
    # connected before anything heavy is imported, so that a worker left alone notices even while it starts
    connection = Client(given["address"], authkey=bytes.fromhex(given["key"]))
    connection.send_bytes(given["name"].encode())
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
    connection.send_bytes(pickle.dumps(Ready(worker, time.monotonic() - began)))
    while (content := inbox.get()) is not None:
        task: Task = pickle.loads(content)

        def tell(report: Any, number: int = task.number) -> None:
            connection.send_bytes(pickle.dumps(Epoch(worker, number, report)))

        outcome = _run(equipment, task, tell, stopping)
        connection.send_bytes(pickle.dumps(Ended(worker, task.number, outcome)))


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
