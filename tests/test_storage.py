"""A run finds its trials again, wherever they are; nothing says a password; older tables are upgraded or refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from commands import SMALL, Heard, command, files_in, run_search
from optuna.trial import FrozenTrial, TrialState

from autoft import outage
from autoft.errors import RunError, StorageError
from autoft.files import read_json
from autoft.insight.evidence import read_run
from autoft.optuna_tables import schemas, stored_schema
from autoft.reexport import export_again
from autoft.runfolder import PLACE, STUDY
from autoft.storage import VARIABLE, choose_url, connect, open_study, read_study

if TYPE_CHECKING:
    from postgres import Server

SECRET = "tr0ub4dor"
URL = "postgresql://ann:secret@host/db"
MASKED = "postgresql://ann:***@host/db"


def remembered(run: Path, url: str = MASKED, made: bool = True) -> Path:
    """A run folder whose trials are elsewhere."""
    run.mkdir()
    (run / PLACE).write_text(json.dumps({"url": url, "study": "photos-1", "made": made}))
    return run


def essence(trials: Sequence[FrozenTrial]) -> list[Any]:
    """What a search decided and found, without times."""
    return [
        (trial.number, trial.state.name, trial.params, trial.intermediate_values, trial.user_attrs.get("best_value"))
        for trial in trials
    ]


# --- which ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "environ", "chosen"),
    [
        (None, {}, None),
        (URL, {}, URL),
        (None, {VARIABLE: URL}, URL),
        ("sqlite:////a/b.db", {VARIABLE: URL}, "sqlite:////a/b.db"),
        (MASKED, {VARIABLE: URL}, URL),
        (MASKED, {"PGPASSWORD": "secret"}, "postgresql://ann@host/db"),
        (None, {VARIABLE: ""}, None),
    ],
)
def test_setting_comes_before_the_variable_which_may_hold_the_password(
    setting: str | None, environ: dict[str, str], chosen: str | None, tmp_path: Path
) -> None:
    assert choose_url(setting, tmp_path / "run", environ) == chosen


@pytest.mark.parametrize("environ", [{}, {VARIABLE: "postgresql://ann:secret@elsewhere/db"}])
def test_password_that_is_missing_is_asked_for(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"ann:\*\*\*@host/db, but its password is not known") as caught:
        choose_url(MASKED, tmp_path / "run", environ)
    assert VARIABLE in str(caught.value.hint)
    with pytest.raises(StorageError, match="password is not known"):
        choose_url(None, remembered(tmp_path / "run"), {})


def test_wrong_variable_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"{VARIABLE} must begin with") as caught:
        choose_url(None, tmp_path, {VARIABLE: "mysql://ann:secret@host/db"})
    assert "secret" not in str(caught.value)


def test_run_with_its_own_file_stays_with_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / STUDY).touch()
    assert choose_url(None, run, {VARIABLE: URL}) is None, "the variable is for new runs"
    with pytest.raises(StorageError, match=r"are in its study.db, but `search.storage` is postgresql://ann:\*\*\*@"):
        choose_url(URL, run, {})


def test_run_that_knows_its_database_needs_no_setting(tmp_path: Path) -> None:
    assert choose_url(None, remembered(tmp_path / "one", "postgresql://ann@host/db"), {}) == "postgresql://ann@host/db"
    assert choose_url(None, remembered(tmp_path / "two"), {VARIABLE: URL}) == URL


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": "x"}'])
def test_damaged_note_of_the_place_is_named(content: str, tmp_path: Path) -> None:
    run = remembered(tmp_path / "run")
    (run / PLACE).write_text(content)
    with pytest.raises(StorageError, match=r"storage\.json is damaged"):
        choose_url(None, run, {})


# --- in a database that runs share ------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared #1.db'}"
    server: Server = request.getfixturevalue("postgres")
    return server.database(f"storage{len(server.sql('SELECT datname FROM pg_database').splitlines())}")


def test_two_runs_of_one_name_share_a_database_and_no_trial(url: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        open_study(tmp_path / name, url, "photos", "maximize").enqueue_trial({"run": name})
    for name in ("one", "two"):
        (trial,) = open_study(tmp_path / name, url, "photos", "maximize").trials
        assert trial.system_attrs["fixed_params"] == {"run": name}
    assert len(optuna.get_all_study_names(connect(url))) == 2


def test_database_without_the_study_is_no_new_beginning(url: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    name = open_study(run, url, "photos", "maximize").study_name
    other = f"sqlite:///{tmp_path / 'other.db'}"
    before = files_in(run)
    with pytest.raises(StorageError, match=rf"are in the study {name} of .*, but {other} has no such study"):
        open_study(run, other, "photos", "maximize")
    assert files_in(run) == before
    with pytest.raises(StorageError, match="has no such study"):
        read_study(run, {VARIABLE: other})


def test_database_may_move(url: str, tmp_path: Path) -> None:
    run, moved = tmp_path / "run", f"sqlite:///{tmp_path / 'moved.db'}"
    run.mkdir()
    study = open_study(run, url, "photos", "maximize")
    study.enqueue_trial({"x": 1})
    optuna.copy_study(from_study_name=study.study_name, from_storage=study._storage, to_storage=connect(moved))
    assert len(open_study(run, moved, "photos", "maximize").trials) == 1
    assert json.loads((run / PLACE).read_text())["url"] == moved
    assert len(read_study(run, {})[0]) == 1


def test_kill_while_the_study_was_made_leaves_nothing_that_hinders(url: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    open_study(run, url, "photos", "maximize")
    place = read_json(run / PLACE)
    (run / PLACE).write_text(json.dumps({**place, "made": False}))
    study = open_study(run, url, "photos", "minimize")
    assert study.study_name != place["study"]
    assert study.direction == optuna.study.StudyDirection.MINIMIZE


@pytest.mark.usefixtures("fast_export", "toys")
def test_search_in_postgresql_is_that_in_a_file(
    postgres: Server, toy_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.database("same")
    url = postgres.url("same", "guest:tr0ub4dor%263")
    there, here = tmp_path / "there", tmp_path / "here"
    heard = Heard()
    run_search(toy_images, here)
    stop_after = iter([False] * 6 + [True] * 1000)
    stopped = run_search(toy_images, there, f"search.storage={url}", should_stop=lambda: next(stop_after), on_event=heard)
    assert stopped.interrupted
    assert not (there / STUDY).exists()
    with pytest.raises(StorageError, match="password is not known"):
        run_search(toy_images, there)
    monkeypatch.setenv(VARIABLE, url)
    result = run_search(toy_images, there, on_event=heard)
    assert not result.interrupted
    assert essence(read_study(there)[0]) == essence(read_study(here)[0])
    assert read_run(there).trials == read_run(there).trials != ()
    assert export_again(there, trial=0, on_event=heard).trial == 0
    for name, content in files_in(there).items():
        assert SECRET not in content.decode(errors="ignore"), name
    assert SECRET not in repr(heard.events) + repr(result)
    assert "storage: postgresql://guest:***@/same" in (there / "study.yaml").read_text()


@pytest.mark.usefixtures("fast_export", "toys")
def test_server_that_goes_away_stops_the_search_with_exit_code_2_and_the_same_command_resumes(
    postgres: Server,
    toy_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(outage, "PATIENCE", 0.5)
    postgres.database("gone")
    url = postgres.url("gone", "guest:tr0ub4dor%263")
    run, here = tmp_path / "run", tmp_path / "here"
    settings = [argument for setting in SMALL for argument in ("--set", setting)]
    arguments = ("search", toy_images, "-b", "toy/mlp", "-o", run, "--storage", url, *settings)
    ended = 0

    from autoft import telling

    tell = telling.trial_ended

    def then_stop(*given: Any, **named: Any) -> Any:
        nonlocal ended
        ended += 1
        if ended == 1:
            postgres.stop()
        return tell(*given, **named)

    monkeypatch.setattr(telling, "trial_ended", then_stop)
    result = command(monkeypatch, capsys, *arguments)
    postgres.start()
    assert result.code == 2, result.err
    assert "does not answer, for 0.5 s" in result.err
    assert "hint: nothing that was finished is lost: once it is back, type the same command again" in result.err
    assert SECRET not in result.err + result.out
    assert [trial.state for trial in read_study(run, {VARIABLE: url})[0]][:1] == [TrialState.COMPLETE]
    result = command(monkeypatch, capsys, *arguments)
    assert result.code == 0, result.err
    run_search(toy_images, here)
    assert essence(read_study(run, {VARIABLE: url})[0]) == essence(read_study(here)[0])


@pytest.mark.usefixtures("toys")
def test_database_that_cannot_be_opened_is_told_before_anything_is_built(toy_images: Path, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    heard = Heard()
    with pytest.raises(StorageError, match="cannot be opened"):
        run_search(toy_images, tmp_path / "run", f"search.storage=postgresql://ann@/db?host={tmp_path}", on_event=heard)
    assert {event.kind for event in heard.events} <= {"data", "warning"}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("who", "database", "words"),
    [
        ("guest:wr0ngpass", "postgres", "password authentication failed"),
        ("keeper:wr0ngpass", "nothing", "does not exist"),
        ("nobody:wr0ngpass", "postgres", "role"),
    ],
)
def test_database_that_cannot_be_opened_is_an_error_at_once(
    postgres: Server, who: str, database: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=words) as caught:
        open_study(tmp_path, postgres.url(database, who), "photos", "maximize")
    shown = f"{caught.value} {caught.value.__cause__} {caught.getrepr(style='long')}"
    assert ":***@" in str(caught.value)
    assert "wr0ngpass" not in str(caught.value)
    assert caught.value.__suppress_context__, "the library's own error is not shown with it"
    assert shown
    assert not (tmp_path / PLACE).exists()


def test_server_that_nobody_runs_is_an_error_at_once(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError, match=r"ann:\*\*\*@/db.* cannot be opened") as caught:
        connect(f"postgresql://ann:wr0ngpass@/db?host={tmp_path}")
    assert "see that the server runs" in str(caught.value.hint)


def test_shared_file_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened: there is no folder"):
        connect(f"sqlite:///{tmp_path / 'missing' / 'shared.db'}")
    assert not (tmp_path / "missing").exists()


def test_missing_driver_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match="needs the package psycopg") as caught:
        connect("postgresql://ann:wr0ngpass@/db")
    assert caught.value.hint == "pip install 'autoft[postgresql]'"


# --- tables of other versions of Optuna -------------------------------------------------------------------------------


def age(database: Path, schema: str) -> None:
    """Make a file look as if an older Optuna, or one that is yet to come, had made it."""
    with closing(sqlite3.connect(database)) as file:
        if schema == "v3.0.0.d":  # 3.2 added an index, and nothing else
            file.execute("DROP INDEX IF EXISTS ix_trials_study_id")
            file.execute("DROP INDEX IF EXISTS trials_study_id_key")
        file.execute("UPDATE alembic_version SET version_num = ?", (schema,))
        file.commit()


def test_file_of_an_older_optuna_is_upgraded_and_kept_as_it_was(tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run = tmp_path / "what? #1"
    run.mkdir()
    open_study(run, None, "photos", "maximize").enqueue_trial({"x": 1})
    age(run / STUDY, "v3.0.0.d")
    old = (run / STUDY).read_bytes()
    heard = Heard()
    assert len(open_study(run, None, "photos", "maximize", listener=heard).trials) == 1
    (warning,) = heard.of("warning")
    assert warning["about"] == "storage"
    assert stored_schema(run / STUDY) == schemas()[1]
    assert (run / "study.db.schema-v3.0.0.d").read_bytes() == old
    open_study(run, None, "photos", "maximize", listener=heard)
    assert len(heard.of("warning")) == 1, "once is enough"
    assert {path.name for path in run.iterdir()} == {STUDY, "study.db.schema-v3.0.0.d"}


def test_file_of_a_newer_optuna_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_study(tmp_path, None, "photos", "maximize")
    age(tmp_path / STUDY, "v99.0.0.a")
    before = files_in(tmp_path)
    with pytest.raises(StorageError, match=r"tables of a newer Optuna \(schema v99\.0\.0\.a\)") as caught:
        open_study(tmp_path, None, "photos", "maximize")
    assert caught.value.hint == "pip install -U optuna"
    with pytest.raises(StorageError, match="newer Optuna"):
        read_study(tmp_path)
    assert files_in(tmp_path) == before


def test_file_of_an_older_optuna_is_not_read_without_an_upgrade(tmp_path: Path) -> None:
    open_study(tmp_path, None, "photos", "maximize")
    age(tmp_path / STUDY, "v3.0.0.d")
    before = files_in(tmp_path)
    with pytest.raises(StorageError, match="an older Optuna"):
        read_study(tmp_path)
    assert files_in(tmp_path) == before


def test_shared_file_of_another_optuna_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "shared.db"
    connect(f"sqlite:///{file}")
    age(file, "v3.0.0.d")
    before = file.read_bytes()
    with pytest.raises(StorageError, match="an older Optuna") as caught:
        open_study(tmp_path, f"sqlite:///{file}", "photos", "maximize")
    assert "optuna storage upgrade --storage sqlite" in str(caught.value.hint)
    assert file.read_bytes() == before


def test_file_with_tables_from_before_they_had_versions_is_named(tmp_path: Path) -> None:
    open_study(tmp_path, None, "photos", "maximize")
    with closing(sqlite3.connect(tmp_path / STUDY)) as file:
        file.execute("DROP TABLE alembic_version")
        file.execute("UPDATE version_info SET schema_version = 1")
        file.commit()
    with pytest.raises(RunError, match=r"study\.db cannot be read: The runtime optuna version"):
        open_study(tmp_path, None, "photos", "maximize")


@pytest.mark.parametrize(
    ("schema", "said", "hint"),
    [("v3.0.0.d", "an older", "optuna storage upgrade --storage postgresql"), ("v99", "a newer", "pip install -U optuna")],
)
def test_shared_database_of_another_optuna_is_refused(
    postgres: Server, schema: str, said: str, hint: str, tmp_path: Path
) -> None:
    name = f"aged-{schema}"
    url = postgres.database(name)
    connect(url)
    postgres.sql(f"UPDATE alembic_version SET version_num = '{schema}'", name)
    with pytest.raises(StorageError, match=said) as caught:
        open_study(tmp_path, url, "photos", "maximize")
    assert hint in str(caught.value.hint)
    assert postgres.sql("SELECT version_num FROM alembic_version", name) == schema


# --- reading ----------------------------------------------------------------------------------------------------------


def test_reading_does_not_wait_for_a_server_that_is_away(tmp_path: Path) -> None:
    run = remembered(tmp_path / "run", f"postgresql://ann@/db?host={tmp_path}")
    with pytest.raises(StorageError, match="cannot be opened"):
        read_study(run, {})


@pytest.mark.parametrize("state", ["empty", "gone"])
def test_database_that_was_lost_is_no_new_beginning(state: str, tmp_path: Path) -> None:
    (tmp_path / "trials" / "0").mkdir(parents=True)
    if state == "empty":
        (tmp_path / STUDY).touch()
    with pytest.raises(RunError, match=f"study.db is {state}, but .*trials holds its trials' files") as caught:
        open_study(tmp_path, None, "study", "maximize")
    assert "backup" in caught.value.hint
    (tmp_path / "trials" / "0").rmdir()
    assert open_study(tmp_path, None, "study", "maximize").trials == []


def test_folder_without_trials_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no study\.db"):
        read_study(tmp_path, {})
    with pytest.raises(RunError, match="is no folder"):
        read_study(tmp_path / "nothing", {})
