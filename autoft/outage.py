"""An Optuna storage that sits out an outage: operations are repeated for a stated time, and none takes effect twice.

Which storage a run has, and how it is opened, is left to `storage.py`.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session

from autoft.config.address import masked, scrubbed
from autoft.errors import StorageError, first_line
from autoft.worker import is_full_disk

PATIENCE = 300.0  # seconds: a server's restart, an update of its packages, or a switch to its standby take less
STOP_PATIENCE = 5.0  # seconds, once the user has asked to stop: whoever asks waits a few seconds and then kills
FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0  # between two tries; it doubles
QUIET = 2.0  # seconds of an outage before the user hears of it
TOKEN = "autoft:token"  # system attribute of a trial: the one call that made it
RESUME = "nothing that was finished is lost: once it is back, type the same command again"
RESTORE = "make it as it was, from a backup where it is damaged or gone; then type the same command again"

T = TypeVar("T")

# Repeated, these leave what one call leaves: they read, or set a value that only this process sets. Those that do not are
# methods of the class below.
IDEMPOTENT = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_system_attrs",
    "_get_best_trial_id",
    "_get_trials",
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_intermediate_value",
    "_set_trial_param",  # a second row for one trial and name is refused by the table, and Optuna passes over that
    "delete_study",
)


class PatientStorage(RDBStorage):
    """Optuna's storage in a database, for one process that alone writes its study.

    Opening it is not repeated: the user is there to see why it fails.

    Args:
        url: For SQLAlchemy.
        engine_kwargs: For SQLAlchemy.
        name: What the user knows it as.
        warn: Hears of an outage that lasts, and of its end.
        should_stop: Whether the user wants to stop; an outage is then waited for no longer.
        patience: Seconds that an operation is repeated for.
    """

    def __init__(
        self,
        url: str,
        engine_kwargs: dict[str, Any],
        *,
        name: str | None = None,
        warn: Callable[[str], None] = lambda text: None,
        should_stop: Callable[[], bool] = lambda: False,
        patience: float | None = None,
    ) -> None:
        self._name = masked(name or url)
        self._secret = url
        self._warn = warn
        self._should_stop = should_stop
        self._patience = PATIENCE if patience is None else patience
        # in Optuna's eyes a URL is a template with names in braces
        super().__init__(url.replace("{", "{{").replace("}", "}}"), engine_kwargs)

    # --- what is not the same when it is done twice -------------------------------------------------------------------

    def create_new_study(self, directions: Sequence[Any], study_name: str | None = None) -> int:
        """Make a study; where an earlier try has made it, return that."""
        tries = 0

        def once() -> int:
            nonlocal tries
            tries += 1
            try:
                return RDBStorage.create_new_study(self, directions, study_name)
            except optuna.exceptions.DuplicatedStudyError:
                if tries == 1 or study_name is None:
                    raise
                return RDBStorage.get_study_id_from_name(self, study_name)

        return self._patiently(once)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial; an earlier try whose answer was lost may have done so."""
        tries = 0

        def once() -> bool:
            nonlocal tries
            tries += 1
            try:
                done = RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if tries == 1 or not self._is_so(trial_id, state, values):
                    raise
                return True
            return done or (tries > 1 and self._is_so(trial_id, state, values))

        return self._patiently(once)

    def _is_so(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        trial = RDBStorage.get_trial(self, trial_id)
        return trial.state == state and (values is None or trial.values == list(values))

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Make a trial, unless an earlier try has: a token in the trial tells.

        Optuna's own method repeats the transaction without a look at what became of the last one. Here the study's row is
        locked first, as it is there, so that a transaction whose answer was lost has ended before the token is looked for.
        """
        wanted = copy.deepcopy(template_trial) or optuna.trial.create_trial(state=TrialState.RUNNING)
        token = uuid.uuid4().hex
        wanted.system_attrs = {**wanted.system_attrs, TOKEN: token}

        def once() -> int:
            with Session(self.engine) as session, session.begin():
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                attribute = models.TrialSystemAttributeModel
                tokens = session.query(attribute).join(models.TrialModel).filter(models.TrialModel.study_id == study_id)
                made = tokens.filter(attribute.key == TOKEN, attribute.value_json == json.dumps(token)).one_or_none()
                if made is not None:
                    return int(made.trial_id)
                return int(self._get_prepared_new_trial(study_id, wanted, session).trial_id)

        return self.get_trial(self._patiently(once))

    # --- patience -----------------------------------------------------------------------------------------------------

    def _patiently(self, operation: Callable[[], T]) -> T:
        """Do something, again and again while the database does not answer.

        Raises:
            StorageError: It did not for too long, or cannot.
        """
        began, wait, told = time.monotonic(), FIRST_WAIT, False
        while True:
            try:
                result = operation()
            except (StorageInternalError, SQLAlchemyError) as error:
                cause = _cause(error)
                if cause is None or is_full_disk_of_run(cause):
                    raise
                reason = scrubbed(first_line(cause.orig or cause), self._secret)
                if not is_passing(cause):
                    raise StorageError(f"{self._name} cannot be used any more: {reason}", RESTORE) from None
                spent = time.monotonic() - began
                stopped = self._should_stop()
                if spent > (min(self._patience, STOP_PATIENCE) if stopped else self._patience):
                    why = "and a stop was asked for" if stopped else f"for {self._patience:g} s"
                    raise StorageError(f"{self._name} does not answer, {why}: {reason}", RESUME) from None
                if spent > QUIET and not told:
                    told = True
                    self._warn(f"{self._name} does not answer; trying again for up to {self._patience:g} s: {reason}")
                time.sleep(wait * random.uniform(0.5, 1.0))  # apart, where several searches wait for one server
                wait = min(2.0 * wait, LONGEST_WAIT)
            except KeyError as error:
                if "Record does not exist" not in str(error):
                    raise
                raise StorageError(
                    f"{self._name} has lost the study of this run: somebody has deleted it",
                    "restore the database from a backup, or choose another folder with -o",
                ) from None
            else:
                if told:
                    self._warn(f"{self._name} answers again after {time.monotonic() - began:.0f} s")
                return result


def _repeated(name: str) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(RDBStorage, name)

    @functools.wraps(method)
    def patiently(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        return self._patiently(lambda: method(self, *arguments, **named))

    return patiently


for _name in IDEMPOTENT:
    setattr(PatientStorage, _name, _repeated(_name))


# --- which errors pass ------------------------------------------------------------------------------------------------


def is_passing(error: DBAPIError) -> bool:
    """Return whether an error is one of a moment: the server or the network is away, or another process holds a lock."""
    name = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return str(name).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))
    # whatever of these is no outage, such as a full disk of the server, is told when patience ends
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError | InternalError)


def is_full_disk_of_run(error: DBAPIError) -> bool:
    """Return whether the disk of an SQLite file is full; that of a server is another's."""
    return hasattr(error.orig, "sqlite_errorname") and is_full_disk(error)


def _cause(error: BaseException) -> DBAPIError | None:
    """Return the database's own error behind one of Optuna's; one that passes first. None: a mistake of ours."""
    known = (OperationalError, InterfaceError, InternalError, ProgrammingError)
    found = [one for one in _chain(error) if isinstance(one, DBAPIError)]
    found = [one for one in found if isinstance(one, known) or hasattr(one.orig, "sqlite_errorname")]
    found = [one for one in found if "INTEGRITY" not in type(one).__name__.upper()]
    return next((one for one in found if is_passing(one)), found[0] if found else None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
