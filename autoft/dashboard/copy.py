"""A run's trials as optuna-dashboard reads them: a copy in memory, to which only notes and artifacts can be added."""

from __future__ import annotations

from collections.abc import Container, Sequence
from copy import deepcopy
from typing import Any, NoReturn

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy  # Optuna names no public way to it, and `get_all_studies` must return it
from optuna.trial import FrozenTrial, TrialState

from autoft.specs import Direction

STUDY_ID = 0


class CopiedStudy(BaseStorage):
    """One study, whose trials are replaced as a whole by `put`; Optuna's interface to read them.

    Args:
        name: Of the study.
        direction: Of the metric.
    """

    def __init__(self, name: str, direction: Direction) -> None:
        self._name = name
        self._direction = StudyDirection.MAXIMIZE if direction == "maximize" else StudyDirection.MINIMIZE
        self._trials: dict[int, FrozenTrial] = {}
        self._attached: dict[int, dict[str, Any]] = {}  # system attributes by trial, which outlive `put`
        self._attributes: dict[str, Any] = {}

    def put(self, trials: Sequence[FrozenTrial]) -> None:
        """Show these trials from now on."""
        copies = {}
        for trial in trials:
            copies[trial._trial_id] = deepcopy(trial)
            copies[trial._trial_id].system_attrs = self._attached.setdefault(trial._trial_id, {})
        self._trials = copies

    # --- reading

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the study's id."""
        if study_name != self._name:
            raise KeyError(f"the study here is {self._name}, not {study_name}")
        return STUDY_ID

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the study's name."""
        return self._of(study_id)._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the direction of the one metric."""
        return [self._of(study_id)._direction]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return what is known of the study: nothing but its notes and artifacts, which are system attributes."""
        self._of(study_id)
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return notes and artifacts."""
        return dict(self._of(study_id)._attributes)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return the one study."""
        return [
            FrozenStudy(
                study_name=self._name,
                direction=None,
                directions=[self._direction],
                user_attrs={},
                system_attrs=dict(self._attributes),
                study_id=STUDY_ID,
            )
        ]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial."""
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials in one of the states, in order; they are never written to, so that no copy is needed."""
        return [trial for trial in self._of(study_id)._trials.values() if states is None or trial.state in states]

    # --- what is added

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Add a note or an artifact to the study."""
        self._of(study_id)._attributes[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Add an artifact to a trial."""
        self._attached.setdefault(trial_id, {})[key] = value

    # --- what is refused

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Refuse."""
        self._refuse()

    def delete_study(self, study_id: int) -> None:
        """Refuse."""
        self._refuse()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refuse."""
        self._refuse()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Refuse."""
        self._refuse()

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: Any) -> None:
        """Refuse."""
        self._refuse()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Refuse."""
        self._refuse()

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Refuse."""
        self._refuse()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refuse."""
        self._refuse()

    def _of(self, study_id: int) -> CopiedStudy:
        if study_id != STUDY_ID:
            raise KeyError(f"there is one study here, {STUDY_ID}, and no {study_id}")
        return self

    def _refuse(self) -> NoReturn:
        raise PermissionError("the trials here are a copy, and are not changed")
