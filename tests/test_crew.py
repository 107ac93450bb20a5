"""Several workers search as one would repeat it: whoever ends first, is killed, or is stopped in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from commands import ONE_THREAD, Heard, assert_same_search, fake_export, run_search, table
from toy_training import CONVNET, MLP, config

from autoft import crew
from autoft.crew import RETRIES, Crew, Manning, choose_manning
from autoft.engine import Died, Ended, Epoch, Message, Ready, Refused, Setup, Task
from autoft.errors import RunError
from autoft.events import Event
from autoft.worker import Outcome

pytestmark = pytest.mark.usefixtures("toys")

ON_TWO = ("search.workers=2", "search.trials=6", "trainer.epochs=3", "search.prune=true", "search.seeds=2")
DONE = Outcome("complete", None, 1, 0.1, "finished")


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "autoft-worker" in child.cmdline()]


@pytest.fixture(scope="module")
def reference(toy_images: Path, toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Heard]]:
    """An uninterrupted search on two workers, with its last round."""
    run, heard = tmp_path_factory.mktemp("reference") / "run", Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(toy_site))
        patch.setenv("AUTOFT_CACHE", str(run.parent / "cache"))
        patch.setattr("autoft.finish.export_bundle", fake_export)
        patch.setattr("autoft.preflight.to_onnx", lambda *arguments, **named: None)
        run_search(toy_images, run, *ON_TWO, on_event=heard)
    return run, heard


# --- a search ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fast_export")
def test_two_workers_train_at_the_same_time_leave_nothing_and_repeat_bit_for_bit(
    toy_images: Path, tmp_path: Path, reference: tuple[Path, Heard]
) -> None:
    run, heard = reference
    run_search(toy_images, tmp_path / "run", *ON_TWO)
    assert_same_search(tmp_path / "run", run)
    order = [(event.kind, event.data["trial"]) for event in heard.events if event.kind in ("trial", "trial_end")]
    assert order[:2] == [("trial", 1), ("trial", 0)], "the second begins before the first has ended"
    assert 1 in {data["seed"] for data in heard.of("confirm") if data["stage"] == "training"}
    assert not workers_of(psutil.Process())
    assert not (run / "pixels").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("fast_export")
def test_search_on_two_workers_that_is_stopped_often_equals_an_uninterrupted_one(
    toy_images: Path, tmp_path: Path, reference: tuple[Path, Heard]
) -> None:
    seen, stop = set(), threading.Event()

    def hear(event: Event) -> None:
        if event.kind == "epoch":
            here = (event.data["trial"], event.data["epoch"])
            if here not in seen and len(seen) % 4 == 1:
                stop.set()
            seen.add(here)

    for session in range(12):
        stop.clear()
        if not run_search(toy_images, tmp_path / "run", *ON_TWO, on_event=hear, should_stop=stop.is_set).interrupted:
            assert session > 1, "it was stopped more than once"
            break
    assert_same_search(tmp_path / "run", reference[0])


@pytest.mark.usefixtures("fast_export")
def test_worker_that_is_killed_is_replaced_and_its_trial_gives_the_same(
    toy_images: Path, tmp_path: Path, reference: tuple[Path, Heard]
) -> None:
    heard = Heard()

    def hear(event: Event) -> None:
        heard(event)
        if event.kind == "epoch" and event.data["trial"] == 0 and event.data["epoch"] == 1 and not heard.of("warning"):
            # as if the kill had hit between temporary file and rename
            (tmp_path / "run" / "trials/0/.model.safetensors.x.tmp").touch()
            for worker in workers_of(psutil.Process()):
                worker.kill()

    run_search(toy_images, tmp_path / "run", *ON_TWO, on_event=hear)
    assert_same_search(tmp_path / "run", reference[0])
    died = [data for data in heard.of("warning") if data["about"] == "worker"]
    assert {data["worker"] for data in died} == {0, 1}
    assert all(data["code"] == -signal.SIGKILL for data in died)


@pytest.mark.slow
def test_search_on_two_workers_whose_driver_is_killed_equals_an_uninterrupted_one(
    toy_images: Path, toy_env: dict[str, str], tmp_path: Path
) -> None:
    script = Path(__file__).with_name("killed_search.py")
    ran = subprocess.run(
        [sys.executable, script, toy_images, tmp_path, "3", "search.workers=2"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, **ONE_THREAD, **toy_env},
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["killed"] == 3
    for run in tmp_path.glob("run-*"):
        assert_same_search(run, tmp_path / "whole")


@pytest.mark.usefixtures("fast_export")
def test_time_limit_holds_for_all_workers_together(toy_images: Path, tmp_path: Path) -> None:
    settings = ("search.workers=2", "search.trials=1000", "trainer.epochs=3", "search.time_limit=12s")
    result = run_search(toy_images, tmp_path / "run", *settings)
    assert result.bundle is not None
    assert 2 <= len(table(tmp_path / "run")) < 1000


# --- how many ---------------------------------------------------------------------------------------


def asked(workers: Any = "auto", devices: tuple[str, ...] = ("cpu",), trials: int = 20) -> Any:
    search = SimpleNamespace(workers=workers, trials=trials)
    return SimpleNamespace(config=SimpleNamespace(search=search), devices=devices, device=torch.device(devices[0]))


def test_workers_share_the_threads_of_a_cpu_and_auto_heeds_memory_and_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(crew.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 << 30))
    assert choose_manning(asked()) == Manning(6, ("cpu",), 1)
    assert choose_manning(asked(trials=3)) == Manning(3, ("cpu",), 2)
    assert choose_manning(asked(trials=1)) == Manning(0, ("cpu",), 6)
    assert choose_manning(asked(workers=0)) == Manning(0, ("cpu",), 6)
    assert choose_manning(asked(workers=12)) == Manning(12, ("cpu",), 1)
    assert choose_manning(asked(devices=("cuda",))).workers == 0
    assert choose_manning(asked(devices=("cuda:0", "cuda:1"))) == Manning(2, ("cuda:0", "cuda:1"), 3)
    monkeypatch.setattr(crew.psutil, "virtual_memory", lambda: SimpleNamespace(available=4 << 30))
    assert choose_manning(asked()) == Manning(2, ("cpu",), 3)
    monkeypatch.setattr(crew.psutil, "virtual_memory", lambda: SimpleNamespace(available=3 << 30))
    assert choose_manning(asked()) == Manning(0, ("cpu",), 6)


def test_all_cores_of_a_large_machine_do_not_search_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(crew.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 40))
    assert choose_manning(asked(trials=100)) == Manning(crew.MOST, ("cpu",), 64 // crew.MOST)


# --- who does what ----------------------------------------------------------------------------------


class Scripted:
    """An engine whose messages the test writes."""

    def __init__(self, *messages: list[Message]) -> None:
        self.messages, self.given = list(messages), list[tuple[int, Task]]()

    def start(self, setup: Setup, workers: int) -> None: ...

    def submit(self, worker: int, task: Task) -> None:
        self.given.append((worker, task))

    def poll(self, timeout: float) -> list[Message]:
        return self.messages.pop(0) if self.messages else []

    def stop(self, *, gracefully: bool) -> None: ...


def submit(crew: Crew, number: int, folder: Path, **rest: Any) -> None:
    crew.submit(number, MLP, config(), "none", folder / str(number), **rest)


def died(worker: int, number: int | None, *, ready: bool = True) -> Died:
    return Died(worker, number, -11, ready, "some words\nlast words")


def test_tasks_go_to_free_workers_and_name_the_backbone_by_its_place(tmp_path: Path) -> None:
    engine = Scripted([Ready(0, 1.0), Ended(0, 7, DONE)])
    two = Crew(engine, 2, [CONVNET, MLP], Heard())
    submit(two, 7, tmp_path, pause_after=1)
    submit(two, 8, tmp_path)
    assert two.free == 0
    assert [(worker, task.number, task.backbone, task.pause_after) for worker, task in engine.given] == [
        (0, 7, 1, 1),
        (1, 8, 1, None),
    ]
    (ended,) = two.poll()
    assert isinstance(ended, Ended)
    assert two.free == 1
    submit(two, 9, tmp_path)
    assert engine.given[-1][0] == 0


def test_task_of_a_dead_worker_is_tried_again_with_the_time_that_is_left_and_fails_as_infra_at_last(tmp_path: Path) -> None:
    heard, engine = Heard(), Scripted(*[[died(0, 3)] for _ in range(RETRIES + 1)])
    one = Crew(engine, 1, [MLP], heard)
    submit(one, 3, tmp_path, seconds=100.0)
    for _ in range(RETRIES):
        assert one.poll() == []
        assert one.free == 0
    assert len(engine.given) == RETRIES + 1
    left = [task.seconds for _, task in engine.given]
    assert left == sorted(left, reverse=True)  # type: ignore[type-var]
    assert replace(engine.given[-1][1], seconds=100.0) == engine.given[0][1]
    (ended,) = one.poll()
    assert isinstance(ended, Ended)
    failure = ended.outcome.failure
    assert failure is not None
    said = "its worker was killed by signal 11, 4 times without an epoch between: last words"
    assert (failure.kind, failure.message) == ("infra", said)
    assert one.free == 1
    assert len(heard.of("warning")) == RETRIES + 1


def test_deaths_are_counted_for_each_task_alone(tmp_path: Path) -> None:
    engine = Scripted([died(0, 3)], [Ended(0, 3, DONE)], *[[died(0, 3)] for _ in range(RETRIES)])
    one = Crew(engine, 1, [MLP], Heard())
    submit(one, 3, tmp_path)
    assert one.poll() == []
    assert len(one.poll()) == 1
    submit(one, 3, tmp_path)  # promoted
    for _ in range(RETRIES):
        assert one.poll() == []


def test_deaths_are_counted_since_the_last_epoch(tmp_path: Path) -> None:
    epoch: Any = Epoch(0, 3, SimpleNamespace(epoch=1))  # type: ignore[arg-type]
    deaths = [[died(0, 3)] for _ in range(RETRIES)]
    again = [[epoch], [died(0, 3)]]  # each goes on from the epoch's checkpoint, which is told once more
    one = Crew(Scripted(*deaths, [epoch], [died(0, 3)], *again * (RETRIES - 1), *again), 1, [MLP], Heard())
    submit(one, 3, tmp_path)
    told = [one.poll() for _ in range(RETRIES + 2 * RETRIES)]
    assert told == [*[[]] * RETRIES, *[[epoch], []] * RETRIES]
    assert one.poll() == [epoch]
    (ended,) = one.poll()
    assert isinstance(ended, Ended)
    assert ended.outcome.stopped == "infra"


def test_worker_that_fails_at_its_start_ends_the_search_with_its_words() -> None:
    one = Crew(Scripted([Died(0, None, 1, False, "some words\nlast words")]), 1, [MLP], Heard())
    with pytest.raises(RunError, match="ended with exit code 1 before it was ready: last words") as raised:
        one.poll()
    assert "--workers 0" in str(raised.value.hint)
    assert "some words" in str(raised.value.hint)


def test_worker_that_is_killed_at_its_start_is_replaced_and_costs_its_task_nothing(tmp_path: Path) -> None:
    stillborn, ready = [died(0, 3, ready=False)], [Ready(0, 1.0)]
    rounds: list[list[Message]] = [*[stillborn] * RETRIES, ready, *[stillborn] * RETRIES, ready, *[[died(0, 3)]] * RETRIES]
    engine = Scripted(*rounds, stillborn)
    one = Crew(engine, 1, [MLP], Heard())
    submit(one, 3, tmp_path)
    assert [one.poll() for _ in rounds] == [[]] * len(rounds), "it was tried again each time"
    assert len(engine.given) == 1 + 3 * RETRIES


def test_worker_that_is_always_killed_at_its_start_ends_the_search() -> None:
    one = Crew(Scripted(*[[died(0, None, ready=False)]] * (RETRIES + 1)), 1, [MLP], Heard())
    for _ in range(RETRIES):
        assert one.poll() == []
    with pytest.raises(RunError, match="killed by signal 11 before it was ready: last words"):
        one.poll()


def test_end_of_a_lease_and_what_is_refused_after_it_are_told(tmp_path: Path) -> None:
    heard = Heard()
    engine = Scripted([Died(0, 3, -9, True, "", silent=61.4)], [Refused(0, 3), Refused(0, None)])
    one = Crew(engine, 1, [MLP], heard)
    submit(one, 3, tmp_path)
    assert one.poll() == one.poll() == []
    assert len(engine.given) == 2
    assert [event.text for event in heard.events] == [
        "worker 0 had not been heard of for 61 s and was ended; trial 3 goes on from its checkpoint",
        "worker 0 was heard of after its lease had run out; what it told of trial 3 does not count",
        "worker 0 was heard of after its lease had run out; a message does not count",
    ]


def test_idle_worker_that_dies_costs_nothing() -> None:
    heard = Heard()
    one = Crew(Scripted([died(0, None)]), 1, [MLP], heard)
    assert one.poll() == []
    assert one.free == 1
    assert heard.of("warning")[0]["trial"] is None


def test_epochs_pass_through(tmp_path: Path) -> None:
    epoch: Any = Epoch(0, 3, SimpleNamespace(epoch=1))  # type: ignore[arg-type]
    assert Crew(Scripted([epoch]), 1, [MLP], Heard()).poll() == [epoch]
