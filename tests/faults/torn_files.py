"""Tears and alters the files of a real run, and reads them as autoft does: recovered, or told; never a wrong result.

Most damage is tried on the function that reads the file; a spread of it on the search that goes on with the folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from commands import Heard, fake_export, run_search, study_of, table
from kills import site
from letters import PLAIN
from promise import Tally
from toy_training import HEAD, TARGETS, state

from autoft import decoded, plugin_record, recipe, runfolder
from autoft.answered import ANSWERS, Answered, keep, read_answers
from autoft.checkpoint import DamagedCheckpointError, read_best
from autoft.config import load_study
from autoft.deploy import inputs_of, open_bundle, predict
from autoft.deployed import load_costs, save_costs
from autoft.discovery import discover
from autoft.errors import AutoftError, ConfigError
from autoft.files import load_tensors, write_checked
from autoft.finish import read_result
from autoft.head_start import load_head, save_head
from autoft.openings import Probed, probe_once
from autoft.prefix_store import PrefixStore
from autoft.seals import read_whole, readable
from autoft.specs import RaggedPreprocessing
from autoft.tables.conversion import convert
from autoft.testing.toy import write_toy_images
from autoft.testing.toy_text import toy_texts
from autoft.tokens import decode_all
from autoft.verify import verify
from autoft.worker import RESULT, WEIGHTS, kept_whole, load_outcome

SMALL = 8 << 10  # bytes of a file that is cut at every offset
ENDS = 4 << 10  # bytes of the first and the last part of a larger one that are
SPREAD = 500  # offsets between
SETTINGS = (
    "search.trials=7",
    "trainer.epochs=3",
    "search.prune=true",
    "search.seeds=2",
    "search.confirm=2",
    "search.reuse=true",
    "space.freeze_depth={low: 0, high: 2}",
)
BACKBONES = ("toy/mlp", "toy/convnet")


@dataclass(frozen=True)
class Case:
    """A file, and how autoft reads it.

    Attributes:
        about: What it is.
        file: It.
        read: Reads it; what comes of it is compared with what the whole file gives.
        told: What says that the file is damaged, as whoever called can tell it from its own mistakes.
        beside: What reading it may change.
        recovered: What is as good as what the whole file gives.
        flips: Whether altered bytes must be noticed, or left out of the promise.
        few: Whether reading takes so long that a few ways to damage it must do.
    """

    about: str
    file: Path
    read: Callable[[], Any]
    told: tuple[type[Exception], ...] = (AutoftError,)
    beside: Path | None = None
    recovered: Sequence[Any] = ()
    flips: bool = True
    few: bool = False


@dataclass
class Counted:
    """What was tried on a file, and what broke."""

    cut: int = 0
    altered: int = 0
    same: int = 0
    broken: list[str] = field(default_factory=list)


# --- damage ---------------------------------------------------------------------------------------------------------------


def cuts(size: int, *, long: bool, rng: random.Random) -> list[int]:
    """Return to how many bytes a file is cut; all of a small file, the ends and a spread of a large one."""
    if not long:
        spread = [rng.randrange(size) for _ in range(6)]
        return sorted({0, 1, size // 2, size - 1, *spread} & set(range(size)))
    if size <= SMALL:
        return list(range(size))
    between = [rng.randrange(ENDS, size - ENDS) for _ in range(SPREAD)]
    return sorted({*range(ENDS), *range(size - ENDS, size), *between})


def flips(size: int, *, long: bool, rng: random.Random) -> list[tuple[int, int]]:
    """Return where which bit of a file is altered."""
    count = min(8 * size, 1000 if long else 12)
    return [(rng.randrange(size), 1 << rng.randrange(8)) for _ in range(count)]


def flipped(content: bytes, place: int, bit: int) -> bytes:
    """Return the content with a bit of it altered."""
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def try_all(case: Case, *, long: bool, rng: random.Random) -> Counted:
    """Damage a file in all ways, and read it each time."""
    whole, counted = case.file.read_bytes(), Counted()
    wanted = [comparable(case.read()), *map(comparable, case.recovered)]
    saved = snapshot(case.beside) if case.beside is not None else {}

    def attempt(content: bytes, how: str) -> None:
        case.file.write_bytes(content)
        try:
            if comparable(case.read()) in wanted:
                counted.same += 1
            else:
                counted.broken.append(f"{case.about}, {how}: gives something else")
        except case.told as error:
            if isinstance(error, AutoftError) and not helpful(error):
                counted.broken.append(f"{case.about}, {how}: no hint: {error}")
        except Exception as error:  # noqa: BLE001 - each of them is a broken promise, to be counted
            counted.broken.append(f"{case.about}, {how}: {type(error).__name__}: {error}")
        finally:
            for path, there in saved.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(there)
            case.file.write_bytes(whole)

    places, bits = cuts(len(whole), long=long, rng=rng), flips(len(whole), long=long, rng=rng)
    if case.few:
        places, bits = rng.sample(places, min(len(places), 20 if long else 1)), bits[: 20 if long else 1]
    for size in places:
        counted.cut += 1
        attempt(whole[:size], f"cut to {size} of {len(whole)} bytes")
    for place, bit in bits if case.flips else ():
        counted.altered += 1
        attempt(flipped(whole, place, bit), f"bit {bit:#04x} of byte {place} of {len(whole)} altered")
    return counted


def helpful(error: AutoftError) -> bool:
    """Return whether an error says what to do; one of a study file names the line."""
    return bool(error.hint) or isinstance(error, ConfigError) or "makes it again" in error.message


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def comparable(value: Any) -> Any:
    """Return a value as one that can be compared with `==`."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {name: comparable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(each) for each in value]
    return value


# --- files ----------------------------------------------------------------------------------------------------------------


def interrupted(data: Path, run: Path) -> None:
    """Leave a run in the middle: some trials have ended, others rest at a rung, one is to come."""
    heard = Heard()

    def stop() -> bool:
        return sum(data["state"] == "paused" for data in heard.of("trial_end")) >= 2

    found = run_search(data, run, *SETTINGS, backbones=BACKBONES, on_event=heard, should_stop=stop)
    assert found.interrupted
    assert list(run.glob("trials/*/checkpoint/last.safetensors")), "nothing rests"


def finish(data: Path, run: Path, heard: Heard | None = None) -> None:
    """Go on to the end."""
    found = run_search(data, run, *SETTINGS, backbones=BACKBONES, on_event=heard)
    assert not found.interrupted


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Leave out what is told of each cache that is made again."""
    logger = logging.getLogger("autoft")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def quick_export() -> Iterator[None]:
    """Leave out the export, which costs seconds; its files have cases of their own."""
    with (
        mock.patch("autoft.finish.export_bundle", fake_export),
        mock.patch("autoft.preflight.to_onnx", return_value=None),
    ):
        yield


def run_cases(run: Path, rested: Path) -> Iterator[Case]:
    """Give the files of a finished run, and of one in which trials rest."""
    lock = json.loads((run / runfolder.LOCK).read_text())
    study = (run / "study.yaml").read_text()

    def opened() -> Any:
        with runfolder.open_run(run, lock["identity"], {}, study) as folder:
            return dict(folder.lock)

    yield Case("lock.json", run / runfolder.LOCK, opened)
    yield Case("result.json", run / "result.json", lambda: read_result(run))
    yield Case("tuned.json", run / runfolder.TUNED, lambda: recipe.read_tuned(run / runfolder.TUNED))
    save_costs(run, [("toy/mlp", load_cost()), ("toy/convnet", load_cost())])
    yield Case("costs.json", run / runfolder.COSTS, lambda: load_costs(run))
    first = next(iter(sorted(run.glob("trials/*/result.json")))).parent
    yield Case("trials/N/result.json", first / RESULT, lambda: load_outcome(first))
    yield Case(
        "trials/N/model.safetensors",
        next(iter(sorted(run.glob("trials/*/model.safetensors")))),
        lambda: whole_weights(next(iter(sorted(run.glob("trials/*/model.safetensors")))).parent),
        told=(ValueError,),  # who wants the weights trains the trial again
    )
    again = next(iter(sorted(run.glob("confirm/*/result.json")))).parent
    yield Case("confirm/N-SEED/result.json", again / RESULT, lambda: load_outcome(again))
    # its lines are for people and programs that listen; of those that cannot be read, `autoft insight` tells nothing
    yield Case("log.jsonl", run / "log.jsonl", lambda: known_events(run / "log.jsonl"), recovered=["fewer"])
    yield Case("study.yaml", run / "study.yaml", lambda: same_study(run, lock), recovered=["another study"])
    resting = next(iter(sorted(rested.glob("trials/*/checkpoint/last.safetensors")))).parent
    for file in (resting / "last.safetensors", next(resting.glob("best-*.safetensors"))):
        name = f"checkpoint/{'best-N' if file.name.startswith('best') else 'last'}.safetensors"
        yield Case(name, file, lambda: best_of(resting), told=(DamagedCheckpointError,))
    for where, about in ((run, "study.db of a finished search"), (rested, "study.db of one in which trials rest")):
        yield Case(about, where / runfolder.STUDY, lambda where=where: stored_trials(where))  # type: ignore[misc]


def load_cost() -> Any:
    from autoft.deployed import Cost

    return Cost(1.25, 3.5)


def whole_weights(folder: Path) -> Any:
    assert kept_whole(folder)
    return load_tensors(folder / WEIGHTS)


def best_of(folder: Path) -> Any:
    described, file, adapter = read_best(folder)
    return described, load_tensors(file), adapter


def known_events(log: Path) -> str:
    """Return whether all events of a log can be read, or fewer; none may be an event that is not one."""
    found = list(runfolder.read_events(log.parent))
    assert all(isinstance(event["event"], str) for event in found)
    whole = [line for line in log.read_bytes().split(b"\n") if line.endswith(b"}")]
    return "all" if len(found) == len(whole) else "fewer"


def same_study(run: Path, lock: dict[str, Any]) -> str:
    """Return whether a run's study file is of the settings in its lock, as `autoft export RUN` finds out."""
    identity = load_study(run / "study.yaml").identity()
    identity["data"] = identity["backbones"] = None  # made of the data and the weights themselves
    stored = {**lock["identity"], "data": None, "backbones": None}
    return "another study" if runfolder.differences(stored, json.loads(json.dumps(identity))) else "the same"


def stored_trials(run: Path) -> Any:
    """Return all that a search takes from its database."""
    where = str(run / runfolder.STUDY)
    study = readable(lambda: study_of(run), where)
    read_whole(study, where)
    left_out = {"seconds", "trace"}
    only_before_the_end = {"paused", "until", "due"}
    return [
        (
            trial.number,
            trial.state.name,
            trial.params,
            trial.values,
            sorted(trial.intermediate_values.items()),
            {
                name: value
                for name, value in trial.user_attrs.items()
                if name not in (left_out | only_before_the_end if trial.state.is_finished() else left_out)
            },
        )
        for trial in study.get_trials(deepcopy=False)
    ]


def cache_cases(folder: Path) -> Iterator[Case]:
    """Give the caches, which are made again, and what else lies in files of their own."""
    texts = toy_texts(classes=2, per_class=20)
    preprocessing = text_preprocessing()

    def tokens() -> Any:
        found = decode_all(texts, preprocessing, memory=1 << 30, cache=folder / "tokens", name="train")
        return found.take(np.arange(len(texts))).values

    tokens()
    for file in sorted((folder / "tokens").iterdir()):
        yield Case(f"tokens/*{file.suffix}", file, tokens, beside=folder / "tokens")

    rows = torch.arange(40 * 48, dtype=torch.int64).remainder(251).to(torch.uint8).view(40, 3, 4, 4)
    where = decoded.Shared(folder / "pixels", "train", {"size": 4})

    def pixels() -> Any:
        return decoded.share(rows[0], len(rows), lambda: iter(rows), where)

    pixels()
    for file in sorted((folder / "pixels").iterdir()):
        if file.suffix != ".lock":
            yield Case(f"pixels/*{file.suffix}", file, pixels, beside=folder / "pixels")

    def activations(memory: int) -> Any:
        store = PrefixStore(folder / "prefix", memory=memory)
        values = torch.linspace(-1.0, 1.0, 40 * 6).view(40, 6)
        kept = store.get("train-0", 40, lambda: iter([(np.arange(40), values)]))
        return kept.take(np.arange(40)).clone()

    activations(0)
    for file in sorted((folder / "prefix").glob("train-0.*")):
        if file.suffix != ".lock":
            for memory, how in ((1 << 20, "read"), (0, "mapped")):
                read = lambda memory=memory: activations(memory)  # noqa: E731
                yield Case(f"prefix/*{file.suffix}, {how}", file, read, beside=folder / "prefix")

    head = HEAD.build(8, TARGETS, {knob.name: knob.default for knob in HEAD.knobs})
    save_head(folder / "head.safetensors", head.state_dict(), {"score": 0.5})

    def loaded() -> Any:
        load_head(head, folder / "head.safetensors")
        return state(head)

    yield Case("probe/*.safetensors", folder / "head.safetensors", loaded)
    probes = folder / "probe.json"
    each = Probed("toy/mlp", 0.5, 0.625, 0.75, None, "mlp.safetensors", None, True)
    write_checked(probes, {"probes": [asdict(each)]})
    yield Case("probe.json", probes, lambda: remember(probes))
    run = folder / "run"
    keep(run, {"test": some_answers()})
    file = run / ANSWERS / "test.safetensors"
    yield Case("answers/*.safetensors", file, lambda: vars(kept_answers(run)))

    table_file, copies = folder / "table.csv", folder / "copies"
    table_file.write_text("text,label\n" + "".join(f"text {row},{row % 3}\n" for row in range(60)))

    def copied() -> Any:
        with mock.patch("datasets.config.HF_DATASETS_CACHE", copies):
            dataset, found = convert(table_file)
            return dataset.to_dict(), found

    copied()
    for file in sorted(copies.rglob("*")):
        if file.is_file() and file.suffix != ".lock":
            yield Case(f"copies of tables, {file.suffix}", file, copied, beside=copies)

    with mock.patch.dict("os.environ", {"AUTOFT_CACHE": str(folder / "user")}):
        discover()
    record = next((folder / "user").glob("plugins-*.json"))

    def recorded() -> Any:
        with mock.patch.object(plugin_record, "record_path", return_value=record):
            return plugin_record._read()

    yield Case("the plugins' record", record, recorded, recovered=[()])


def some_answers() -> Answered:
    """Return answers to twenty samples."""
    names = tuple(f"{row}.png" for row in range(20))
    scores = torch.linspace(0.0, 1.0, 60).reshape(20, 3)
    return Answered("label", ("a", "b", "c"), {}, 20, scores, scores.argmax(1), names, names, (None,) * 20)


def kept_answers(run: Path) -> Answered:
    """Return a run's answers."""
    found = read_answers(run)
    assert found is not None
    return found


def text_preprocessing() -> RaggedPreprocessing:
    return PLAIN


def remember(file: Path) -> Any:
    nothing: Any = None
    return probe_once(
        file,
        file.parent / "probe",
        ["toy/mlp"],
        [],
        nothing,
        nothing,
        nothing,
        device=torch.device("cpu"),
        seed=0,
        keep_all=False,
    )


def bundle_cases(bundle: Path, data: Path) -> Iterator[Case]:
    """Give each file of a bundle, as commands read it.

    An altered `autoft.json` is left out: it holds the hashes of the others, and only a signature can hold its own.
    """
    catalog = discover()
    images = sorted(map(str, data.rglob("*.png")))[:2]

    def answers() -> Any:
        opened = open_bundle(bundle, catalog)
        return list(predict(opened, inputs_of(opened, images)))

    def verified() -> Any:
        return [(check.name, check.outcome) for check in verify(bundle, catalog)]

    whole = verified()
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        name = file.relative_to(bundle).as_posix()
        yield Case(f"bundle/{name}, autoft predict", file, answers, flips=name != "autoft.json", few=name != "autoft.json")
        if name != "autoft.json":
            yield Case(f"bundle/{name}, autoft verify", file, lambda: must_fail(verified(), whole), few=True)


def must_fail(found: Any, whole: Any) -> Any:
    """Return the checks of a bundle that pass; raise what the command says where one does not."""
    if found != whole:
        raise AutoftError(f"a check fails: {found}", "get the bundle again")
    return found


# --- the search that goes on ----------------------------------------------------------------------------------------------


def resumes(data: Path, rested: Path, whole: Path, folder: Path, *, long: bool, rng: random.Random) -> Iterator[Tally]:
    """Damage a file of a run in the middle, type the command again, and compare with the search that was left alone."""
    names = [
        runfolder.LOCK,
        "study.yaml",
        runfolder.STUDY,
        "log.jsonl",
        runfolder.TUNED,
        runfolder.PROBES,
        *(str(path.relative_to(rested)) for path in sorted(rested.glob("trials/*/checkpoint/*.safetensors"))),
        *(str(path.relative_to(rested)) for path in sorted(rested.glob("trials/*/*.*"))),
        *(str(path.relative_to(rested)) for path in sorted(rested.glob("prefix/*.bin"))[:2]),
        *(str(path.relative_to(rested)) for path in sorted(rested.glob("prefix/*.json"))[:2]),
    ]
    names = [name for name in names if (rested / name).exists()]
    if not long:
        names = rng.sample(names, 8)
    tried, told, recovered, broken = 0, 0, 0, list[str]()
    for name in names:
        content = (rested / name).read_bytes()
        damages = [(content[: rng.randrange(len(content))], "cut"), (b"", "empty")]
        for _ in range(6 if long else 1):
            damages.append((flipped(content, rng.randrange(len(content)), 1 << rng.randrange(8)), "altered"))
            damages.append((content[: rng.randrange(len(content))], "cut"))
        for damaged, how in damages if long else rng.sample(damages, 1):
            tried += 1
            run = folder / "again"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(rested, run)
            (run / name).write_bytes(damaged)
            try:
                finish(data, run)
                same_result(run, whole)
                recovered += 1
            except AssertionError as error:
                broken.append(f"{name} {how}: another result: {str(error)[:200]}")
            except AutoftError as error:
                told += 1
                if not helpful(error):
                    broken.append(f"{name} {how}: no hint: {error}")
            except Exception as error:  # noqa: BLE001 - counted
                broken.append(f"{name} {how}: {type(error).__name__}: {error}")
    note = f"{recovered} came to the same result, {told} were told"
    yield Tally("a search goes on with a damaged file", "the same result, or an error with what to do", tried, broken, note)


def same_result(found: Path, wanted: Path) -> None:
    """Compare what two runs decided and found; a trial that cannot win may have lost its weights."""
    assert table(found) == table(wanted)
    one, other = (read_result(run) for run in (found, wanted))
    assert one is not None
    assert other is not None
    assert one["winner"] == other["winner"]
    assert one["confirmed"] == other["confirmed"]
    assert (found / "bundle" / "autoft.json").read_bytes() == (wanted / "bundle" / "autoft.json").read_bytes()


def tallies(folder: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Yield a count for each kind of file, and one of whole searches; the short form leaves out bundles."""
    rng = random.Random(seed)
    if long:
        sys.path.insert(0, str(site(folder / "site")))
    data, run, rested = folder / "images", folder / "run", folder / "rested"
    write_toy_images(data)
    with quick_export():
        interrupted(data, rested)
        shutil.copytree(rested, run)
        finish(data, run)
        shutil.copytree(run, folder / "whole")
    for case in (*run_cases(run, rested), *cache_cases(folder)):
        with quietly():
            counted = try_all(case, long=long, rng=rng)
        yield tally(case, counted)
    with quick_export(), quietly():
        yield from resumes(data, rested, folder / "whole", folder, long=long, rng=rng)
    if long:
        run_search(data, folder / "exported", "search.trials=1")
        yield from bundle_tallies(folder / "exported" / "bundle", data, long=True, seed=seed)


def bundle_tallies(bundle: Path, data: Path, *, long: bool, seed: int) -> Iterator[Tally]:
    """Yield a count for each file of a bundle; the bundle is left as it was."""
    rng = random.Random(seed)
    for case in bundle_cases(bundle, data):
        yield tally(case, try_all(case, long=long, rng=rng))


def tally(case: Case, counted: Counted) -> Tally:
    """Return what came of a file."""
    note = f"{counted.cut} cuts, {counted.altered} altered bits; {counted.same} without effect or made again"
    return Tally(case.about, "recovered or told", counted.cut + counted.altered, counted.broken, note)
