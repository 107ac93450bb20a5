"""Workers in processes train as in this one, end when they should, and lose nothing when they are killed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from toy_training import HEAD, TRAIN, VALIDATION, assert_equal_tensors, config

from autoft import processes
from autoft.catalog import Catalog
from autoft.discovery import discover
from autoft.engine import (
    BackboneSetup,
    Died,
    Ended,
    Epoch,
    LocalEngine,
    Message,
    Ready,
    Refused,
    Setup,
    Task,
    equip,
    run_task,
)
from autoft.errors import PluginError
from autoft.files import load_tensors
from autoft.processes import ProcessEngine
from autoft.specs import BackboneRequest, Head, Sample
from autoft.testing import toy
from autoft.train import TrainConfig
from autoft.worker import WEIGHTS, Outcome, StopTrial

SECONDS = 60  # that a process may take to answer, on a busy machine
KNOBS = {"dropout": 0.1, "bias": "yes"}
LONG = 5000  # epochs that nothing here waits for


def make_setup(head: Head | None = None, train: Sequence[Sample] = TRAIN, **changes: Any) -> Setup:
    head = head or toy.autoft_heads()[0]
    targets = head.describe([sample.target for sample in train])

    def rows(samples: Sequence[Any]) -> Any:
        return head.encode([sample.target for sample in samples], targets)

    backbones = tuple(
        BackboneSetup("toy", request, toy.resolve(request).preprocessing)
        for request in (BackboneRequest("convnet", "none"), BackboneRequest("mlp", "none"))
    )
    splits = {"train": (train, rows(train)), "validation": (VALIDATION, rows(VALIDATION)), "test": ((), rows(()))}
    setup = Setup(backbones, head.name, targets, "loss", splits, ("cpu",), 1 << 28)
    return replace(setup, **changes)


def task(
    folder: Path, number: int = 0, backbone: int = 0, epochs: int = 2, augmentation: str = "light", **rest: Any
) -> Task:
    settings = config(epochs=epochs, seed=number, knobs=KNOBS)
    return Task(number, backbone, settings, augmentation, str(folder / f"trial-{number}"), **rest)


@dataclass
class Heard:
    """An engine and all that it told."""

    engine: ProcessEngine
    messages: list[Message]

    def until(self, done: Callable[[Message], bool]) -> list[Message]:
        """Poll until a message is as wanted; return those since."""
        began, heard = time.monotonic(), list[Message]()
        while not any(done(message) for message in heard):
            assert time.monotonic() - began < SECONDS, f"only these came: {heard}"
            heard += self.engine.poll(1)
        self.messages += heard
        return heard

    def outcome(self, number: int) -> Outcome:
        """Poll until a trial has ended."""
        heard = self.until(lambda message: isinstance(message, Ended) and message.number == number)
        (outcome,) = (message.outcome for message in heard if isinstance(message, Ended) and message.number == number)
        return outcome

    def death(self) -> Died:
        """Poll until a worker has died."""
        (died,) = (message for message in self.until(lambda message: isinstance(message, Died)) if isinstance(message, Died))
        return died


@pytest.fixture(scope="module")
def toy_path(toy_site: Path) -> Iterator[None]:
    """The toys are found through `sys.path` alone, which the processes must be told."""
    sys.path.insert(0, str(toy_site))
    yield
    sys.path.remove(str(toy_site))


def start_two(setup: Setup) -> Heard:
    """Start two workers and wait until both are ready."""
    heard = Heard(ProcessEngine(), [])
    heard.engine.start(setup, 2)
    waiting = {0, 1}

    def ready(message: Message) -> bool:
        assert isinstance(message, Ready), message
        waiting.discard(message.worker)
        return not waiting

    heard.until(ready)
    return heard


@pytest.fixture(scope="module")
def two(toy_path: None) -> Iterator[Heard]:
    """Two workers for all tests that leave them as they were."""
    heard = start_two(make_setup())
    yield heard
    heard.engine.stop(gracefully=False)


def alone(wanted: Task, folder: Path, setup: Setup | None = None) -> dict[str, torch.Tensor]:
    """The weights that a task gives in this process."""
    here = replace(wanted, folder=str(folder / "alone"))
    outcome = run_task(equip(setup or make_setup()), here, lambda report: None, lambda: False)
    assert outcome.state == "complete"
    return load_tensors(folder / "alone" / WEIGHTS)[0]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(true: Callable[[], bool], seconds: float = 20) -> bool:
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            return False
        time.sleep(0.05)
    return True


# --- a task's run -----------------------------------------------------------------------------------


def test_two_workers_give_bit_for_bit_what_one_gives_here(two: Heard, tmp_path: Path) -> None:
    assert_two_give_what_one_gives(two, [task(tmp_path, number, backbone=number % 2) for number in range(4)], tmp_path)


def test_balanced_sampling_is_the_same_in_any_number_of_workers(toy_path: None, tmp_path: Path) -> None:
    rare = tuple(sample for index, sample in enumerate(TRAIN) if sample.target != TRAIN[0].target or index % 6 == 0)
    setup = make_setup(HEAD, rare, metric="log_loss")
    knobs = {"dropout": 0.0, "label_smoothing": 0.0, "imbalance": "resample", "focal_gamma": 2.0}
    tasks = [task(tmp_path, number) for number in range(3)]
    tasks = [replace(each, config=replace(each.config, knobs=knobs)) for each in tasks]
    heard = start_two(setup)
    try:
        assert_two_give_what_one_gives(heard, tasks, tmp_path, setup)
    finally:
        heard.engine.stop(gracefully=False)
    plain = replace(tasks[0], config=replace(tasks[0].config, knobs={**knobs, "imbalance": "none"}))
    drawn, undrawn = alone(tasks[0], tmp_path / "drawn", setup), alone(plain, tmp_path / "undrawn", setup)
    assert any(not torch.equal(value, undrawn[name]) for name, value in drawn.items())


def assert_two_give_what_one_gives(two: Heard, tasks: list[Task], folder: Path, setup: Setup | None = None) -> None:
    for number, wanted in enumerate(tasks[:2]):
        two.engine.submit(number, wanted)
    waiting, left, heard = set(range(len(tasks))), tasks[2:], list[Message]()
    while waiting:
        heard += (new := two.until(lambda message: isinstance(message, Ended)))
        for ended in (message for message in new if isinstance(message, Ended)):
            assert ended.outcome.state == "complete", ended.outcome.failure
            waiting.remove(ended.number)
            if left:
                two.engine.submit(ended.worker, left.pop(0))
    assert {message.worker for message in heard} == {0, 1}
    for wanted in tasks:
        epochs = [
            message.report.epoch for message in heard if isinstance(message, Epoch) and message.number == wanted.number
        ]
        assert epochs == [1, 2]
        found = load_tensors(Path(wanted.folder) / WEIGHTS)[0]
        assert_equal_tensors(found, alone(wanted, folder / f"alone-{wanted.number}", setup))


def test_local_engine_gives_the_same_messages_and_weights(toy_path: None, tmp_path: Path) -> None:
    engine = LocalEngine()
    engine.start(make_setup(), 0)
    engine.submit(0, task(tmp_path))
    ready, first, second, ended = engine.poll()
    assert isinstance(ready, Ready)
    assert isinstance(first, Epoch)
    assert isinstance(second, Epoch)
    assert isinstance(ended, Ended)
    assert (first.report.epoch, second.report.epoch, ended.outcome.state) == (1, 2, "complete")
    assert_equal_tensors(load_tensors(tmp_path / "trial-0" / WEIGHTS)[0], alone(task(tmp_path), tmp_path))
    assert engine.poll() == []


def test_local_engine_tells_epochs_at_once_and_lets_the_listener_end_the_trial(toy_path: None, tmp_path: Path) -> None:
    heard: list[Message] = []

    def listen(message: Message) -> None:
        heard.append(message)
        raise StopTrial("pruned")

    engine = LocalEngine(listen)
    engine.start(make_setup())
    engine.submit(0, task(tmp_path))
    _, ended = engine.poll()
    assert isinstance(ended, Ended)
    assert (ended.outcome.state, ended.outcome.stopped, len(heard)) == ("pruned", "pruned", 1)


def test_local_engine_stops_at_the_next_step(toy_path: None, tmp_path: Path) -> None:
    engine = LocalEngine(lambda message: engine.stop(gracefully=True))
    engine.start(make_setup())
    engine.submit(0, task(tmp_path))
    ended = engine.poll()[-1]
    assert isinstance(ended, Ended)
    assert (ended.outcome.state, ended.outcome.epochs) == ("interrupted", 1)
    with pytest.raises(ValueError, match="does not"):
        engine.submit(0, task(tmp_path))


def test_paused_task_goes_on_in_another_worker(two: Heard, tmp_path: Path) -> None:
    two.engine.submit(0, task(tmp_path, epochs=3, pause_after=1))
    paused = two.outcome(0)
    assert (paused.state, paused.epochs) == ("paused", 1)
    two.engine.submit(1, task(tmp_path, epochs=3, pause_after=3))
    assert two.outcome(0).state == "complete"
    assert_equal_tensors(load_tensors(tmp_path / "trial-0" / WEIGHTS)[0], alone(task(tmp_path, epochs=3), tmp_path))


def test_deadline_ends_a_task_and_keeps_its_epochs(two: Heard, tmp_path: Path) -> None:
    two.engine.submit(0, task(tmp_path, epochs=LONG, seconds=4.0))
    outcome = two.outcome(0)
    assert (outcome.state, outcome.stopped) in (("pruned", "time limit"), ("interrupted", "interrupted"))
    assert 0 < outcome.epochs < LONG


def test_failure_comes_back_typed_and_the_worker_goes_on(two: Heard, tmp_path: Path) -> None:
    (tmp_path / "trial-7" / "result.json").mkdir(parents=True)  # even `Worker.run` raises here
    two.engine.submit(0, task(tmp_path, 7))
    failed = two.outcome(7)
    assert failed.failure is not None
    assert "result.json" in failed.failure.message
    two.engine.submit(0, task(tmp_path, 8))
    assert two.outcome(8).state == "complete"


def test_worker_takes_one_task_at_a_time_and_must_exist(two: Heard, tmp_path: Path) -> None:
    two.engine.submit(0, task(tmp_path))
    with pytest.raises(ValueError, match="still has trial 0"):
        two.engine.submit(0, task(tmp_path, 1))
    with pytest.raises(ValueError, match="worker 2 does not"):
        two.engine.submit(2, task(tmp_path, 1))
    assert two.outcome(0).state == "complete"


def test_key_of_the_connection_is_neither_on_the_command_line_nor_in_the_environment(two: Heard) -> None:
    key = two.engine._key.hex()
    for pid in two.engine.pids.values():
        process = psutil.Process(pid)
        assert "autoft-worker" in process.cmdline()
        assert key not in " ".join(process.cmdline())
        assert key not in " ".join(process.environ().values())


# --- what cannot be sent ----------------------------------------------------------------------------


class Unsendable:
    """Has what no other process can have."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_part_that_cannot_be_pickled_is_named() -> None:
    plain = make_setup()
    strange = replace(plain.backbones[1], preprocessing=Unsendable())  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"but the preprocessing of toy/mlp is not: .*lock"):
        ProcessEngine().start(replace(plain, backbones=(plain.backbones[0], strange)), 1)
    with pytest.raises(PluginError, match="the train split's samples"):
        ProcessEngine().start(replace(plain, splits={"train": ((Unsendable(),), torch.zeros(1))}), 1)  # type: ignore[dict-item]


def test_setup_of_texts_goes_to_another_process_as_it_is() -> None:
    request = BackboneRequest("text", "none")
    fitted = toy.resolve(request).preprocessing.fit(["some words", "more"])
    backbone = BackboneSetup("toy", request, fitted)
    sent = pickle.loads(pickle.dumps(replace(make_setup(), backbones=(backbone,))))
    assert sent.backbones == (backbone,)
    assert sent.backbones[0].preprocessing.to_dict() == fitted.to_dict()


def test_task_that_cannot_be_pickled_is_refused_and_the_worker_stays_free(two: Heard, tmp_path: Path) -> None:
    settings: TrainConfig = config(knobs={"dropout": Unsendable()})
    with pytest.raises(PluginError, match="the configuration of trial 3"):
        two.engine.submit(0, Task(3, 0, settings, "none", str(tmp_path)))
    two.engine.submit(0, task(tmp_path))
    assert two.outcome(0).state == "complete"


def test_backbones_and_head_are_resolved_again_with_the_fitted_preprocessing(toy_path: None) -> None:
    plain = make_setup()
    fitted = replace(plain.backbones[0].preprocessing, resize=20)  # type: ignore[type-var]
    made = equip(replace(plain, backbones=(replace(plain.backbones[0], preprocessing=fitted),)))
    catalog: Catalog = discover()
    assert made.backbones[0].preprocessing == fitted
    assert made.backbones[0].preprocessing != catalog.resolve_backbone("toy/convnet", "none").preprocessing
    with pytest.raises(PluginError, match="toy"):
        equip(replace(plain, plugins=False))


# --- ends -------------------------------------------------------------------------------------------


def first_epoch(message: Message) -> bool:
    assert not isinstance(message, Died), message
    return isinstance(message, Epoch)


def test_killed_worker_is_told_the_other_goes_on_and_a_new_one_takes_up_the_trial(two: Heard, tmp_path: Path) -> None:
    two.engine.submit(0, task(tmp_path, 0, epochs=24))
    two.engine.submit(1, task(tmp_path, 1, epochs=60))
    two.until(lambda message: first_epoch(message) and message.worker == 0)
    os.kill(two.engine.pids[0], signal.SIGKILL)
    died = two.death()
    assert (died.worker, died.number, died.code, died.ready) == (0, 0, -signal.SIGKILL, True)
    two.engine.submit(0, task(tmp_path, 0, epochs=24))  # to another in its place, before that is ready
    waiting, heard = {0, 1}, list[Message]()
    while waiting:
        heard += (new := two.until(lambda message: isinstance(message, Ended)))
        waiting -= {ended.number for ended in new if isinstance(ended, Ended) and ended.outcome.state == "complete"}
    again = [message.report.epoch for message in heard if isinstance(message, Epoch) and message.number == 0]
    assert again[-1] == 24
    assert len(again) <= 24, "it went on from its checkpoint, whose epoch is told once more"
    assert_equal_tensors(load_tensors(tmp_path / "trial-0" / WEIGHTS)[0], alone(task(tmp_path, 0, epochs=24), tmp_path))


@pytest.mark.parametrize("stuck", [False, True], ids=["killed", "stuck in the system"])
def test_worker_that_is_stopped_beyond_its_lease_loses_its_task_and_its_late_result_is_refused(
    stuck: bool, toy_path: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, wanted = Heard(ProcessEngine(lease=3.0), []), task(tmp_path, 0, epochs=200)
    heard.engine.start(make_setup(), 1)
    stopped = heard.engine._processes[0]
    try:
        heard.engine.submit(0, wanted)
        heard.until(first_epoch)
        if stuck:  # a process that waits for a dead disk outlives SIGKILL, until the disk answers
            monkeypatch.setattr(processes, "REAP", 0.1)
            monkeypatch.setattr(stopped._process, "kill", lambda: None)
        os.kill(stopped.pid, signal.SIGSTOP)
        died = heard.death()
        assert (died.worker, died.number, died.ready) == (0, 0, True)
        assert died.silent is not None
        assert died.silent > 3.0
        assert gone(stopped.pid) != stuck
        heard.engine.submit(0, wanted)
        if stuck:
            os.kill(stopped.pid, signal.SIGCONT)
            heard.until(lambda message: message == Refused(0, 0))
            stopped._process.send_signal(signal.SIGKILL)
        assert heard.outcome(0).state == "complete"
    finally:
        heard.engine.stop(gracefully=False)
    assert not [message for message in heard.messages if isinstance(message, Died)][1:]
    assert_equal_tensors(load_tensors(tmp_path / "trial-0" / WEIGHTS)[0], alone(wanted, tmp_path))


def test_lease_is_counted_anew_after_the_driver_itself_was_stopped(toy_path: None, tmp_path: Path) -> None:
    """What workers told meanwhile lies in the connection, or they are started again by the same Ctrl-Z and fg."""
    heard = Heard(ProcessEngine(lease=2.0), [])
    heard.engine.start(make_setup(), 1)
    try:
        heard.until(lambda message: isinstance(message, Ready))
        worker = heard.engine._processes[0]
        worker.heard -= 10.0  # as if nothing had been read for so long
        heard.engine._looked -= 10.0
        assert heard.engine.poll(0.0) == []
        worker.heard -= 10.0
        (died,) = heard.engine.poll(0.0)
        assert isinstance(died, Died)
    finally:
        heard.engine.stop(gracefully=False)


def test_worker_that_cannot_start_says_why(toy_path: None) -> None:
    heard = Heard(ProcessEngine(), [])
    heard.engine.start(replace(make_setup(), head="nothing"), 1)
    try:
        died = heard.death()
        assert (died.code, died.ready, died.number) == (1, False, None)
        assert "head must be one that is installed, but got 'nothing'" in died.errors
    finally:
        heard.engine.stop(gracefully=False)


DRIVER = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_engine import make_setup, task
from autoft.engine import Ended, Epoch
from autoft.processes import ProcessEngine
print("a library's words")
folder = Path(sys.argv[3])
engine = ProcessEngine()
engine.start(make_setup(), 2)
engine.submit(0, task(folder, epochs=5000))
while not any(isinstance(message, Epoch) for message in engine.poll(1)):
    pass
print("pids", *engine.pids.values(), flush=True)
sys.stdin.readline()
engine.stop(gracefully=True)
print([(m.number, m.outcome.state) for m in engine.poll(0) if isinstance(m, Ended)], flush=True)
"""


def start_driver(toy_site: Path, folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A script without a `__main__` guard, whose two workers run: one trains, one is idle."""
    script = folder / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    driver = subprocess.Popen(
        [sys.executable, script, toy_site, Path(__file__).parent, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith("pids"):
            return driver, [int(word) for word in line.split()[1:]]
    pytest.fail("the driver ended before its workers trained")


def test_workers_of_a_killed_driver_end_by_themselves_in_the_middle_of_training(toy_site: Path, tmp_path: Path) -> None:
    driver, pids = start_driver(toy_site, tmp_path)
    assert len(pids) == 2
    assert not any(gone(pid) for pid in pids)
    driver.kill()
    driver.communicate()
    assert wait_until(lambda: all(gone(pid) for pid in pids))
    assert (tmp_path / "trial-0" / "checkpoint" / "last.safetensors").exists()


def test_engine_that_is_stopped_twice_takes_nothing_more(toy_path: None, tmp_path: Path) -> None:
    engine = ProcessEngine()
    engine.start(make_setup(), 1)
    engine.stop(gracefully=True)
    engine.stop(gracefully=False)
    with pytest.raises(ValueError, match="worker 0 does not"):
        engine.submit(0, task(tmp_path))


def test_deadline_waits_for_a_first_epoch_where_one_is_needed(toy_path: None, tmp_path: Path) -> None:
    made = equip(make_setup())
    late = task(tmp_path, epochs=3, seconds=-1.0)

    def run(wanted: Task) -> tuple[str, str, int]:
        outcome = run_task(made, wanted, lambda report: None, lambda: False)
        return outcome.state, outcome.stopped, outcome.epochs

    assert run(late) == ("interrupted", "interrupted", 0)
    assert run(replace(late, number=1, folder=str(tmp_path / "1"), one_epoch=True)) == ("pruned", "time limit", 1)
    assert run(replace(late, number=2, folder=str(tmp_path / "2"), one_epoch=True, whole=True))[0::2] == ("interrupted", 1)


def test_graceful_stop_leaves_a_checkpoint_and_no_process(toy_site: Path, tmp_path: Path) -> None:
    driver, pids = start_driver(toy_site, tmp_path)
    out, _ = driver.communicate("\n", timeout=SECONDS)
    assert out.splitlines() == ["[(0, 'interrupted')]"]
    assert driver.returncode == 0
    assert all(gone(pid) for pid in pids)
    described = load_tensors(tmp_path / "trial-0" / "checkpoint" / "last.safetensors")[1]
    assert described["history"]
