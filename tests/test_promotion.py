"""The promotion policy: who may go on, what goes first, and that a search ends."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.errors import AutoftError
from autoft.promotion import Done, Progress, Promote, Start, next_action, rungs
from autoft.specs import Direction


def resting(number: int, *values: float, seconds: float = 0.0) -> Progress:
    return Progress(number, values, seconds, "paused")


def ended(number: int, *values: float, seconds: float = 0.0) -> Progress:
    return Progress(number, values, seconds, "ended")


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 3)), (4, (1, 4)), (5, (1, 2, 5)), (10, (1, 3, 10)), (100, (4, 11, 33, 100))],
)
def test_rungs_are_counted_down_from_the_end(epochs: int, expected: tuple[int, ...]) -> None:
    assert rungs(epochs) == expected


def test_rungs_begin_where_they_are_told_to() -> None:
    assert rungs(100, first=1) == (1, 4, 11, 33, 100)
    assert rungs(10, first=2) == (3, 10)
    assert rungs(10, eta=2, first=10) == (10,)


@given(st.integers(1, 500), st.integers(2, 5))
def test_rungs_rise_to_the_last_epoch(epochs: int, eta: int) -> None:
    found = rungs(epochs, eta=eta)
    assert found[-1] == epochs
    assert found[0] >= 1
    assert all(low < high for low, high in pairwise(found))


@pytest.mark.parametrize(
    "arguments", [{"epochs": 0}, {"epochs": 5, "eta": 1}, {"epochs": 5, "first": 6}, {"epochs": 5, "first": 0}]
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(AutoftError, match="must be"):
        rungs(**arguments)


def test_the_first_action_is_a_new_trial_and_none_without_a_budget() -> None:
    assert next_action([], epochs=10, direction="maximize", may_start=True) == Start()
    assert next_action([], epochs=10, direction="maximize", may_start=False) == Done()


def test_nobody_goes_on_before_there_are_enough_to_compare() -> None:
    trials = [resting(0, 0.9), resting(1, 0.1)]
    assert next_action(trials, epochs=10, direction="maximize", may_start=True) == Start()


@pytest.mark.parametrize(("direction", "number"), [("maximize", 2), ("minimize", 1)])
def test_the_best_third_goes_on_to_the_next_rung(direction: Direction, number: int) -> None:
    trials = [resting(0, 0.5), resting(1, 0.1), resting(2, 0.9)]
    assert next_action(trials, epochs=10, direction=direction, may_start=True) == Promote(number, 3)


def test_of_equal_trials_the_earlier_goes_on() -> None:
    trials = [resting(2, 0.5), resting(1, 0.5), resting(0, 0.5)]
    assert next_action(trials, epochs=10, direction="maximize", may_start=True) == Promote(0, 3)


def test_a_place_already_taken_by_a_trial_that_went_on_is_not_given_again() -> None:
    trials = [resting(0, 0.5), resting(1, 0.4), Progress(2, (0.9,), 0.0, "running")]
    assert next_action(trials, epochs=10, direction="maximize", may_start=True) == Start()


def test_a_trial_counts_at_a_rung_with_its_best_value_up_to_it() -> None:
    trials = [resting(0, 0.9, 0.1, 0.1), resting(1, 0.5, 0.6, 0.7), resting(2, 0.1, 0.2, 0.3)]
    assert next_action(trials, epochs=10, direction="maximize", may_start=True) == Promote(0, 10)


def test_a_value_that_is_no_number_never_leads() -> None:
    trials = [resting(0, math.nan), resting(1, 0.1), resting(2, 0.2)]
    assert next_action(trials, epochs=10, direction="maximize", may_start=True) == Promote(2, 3)


def test_at_the_end_the_leader_is_trained_to_the_last_epoch() -> None:
    trials = [ended(0, *[0.5] * 10), resting(1, 0.6)]
    assert next_action(trials, epochs=10, direction="maximize", may_start=False) == Promote(1, 10)


def test_at_the_end_a_resting_trial_behind_a_whole_one_is_left() -> None:
    trials = [ended(0, *[0.5] * 10), resting(1, 0.4)]
    assert next_action(trials, epochs=10, direction="maximize", may_start=False) == Done()


def test_a_running_leader_is_waited_for() -> None:
    trials = [Progress(0, (0.7,), 0.0, "running"), resting(1, 0.6)]
    assert next_action(trials, epochs=10, direction="maximize", may_start=False) == Done()


def test_an_interrupted_preset_goes_on_to_the_end_at_once() -> None:
    preset = replace(resting(0, 0.1, 0.1), full=True)
    trials = [preset, resting(1, 0.5), resting(2, 0.9), resting(3, 0.7)]
    assert next_action(trials, epochs=10, direction="maximize", may_start=True) == Promote(0, 10)


def test_of_two_alike_the_cheaper_goes_first() -> None:
    rest = [ended(number, 0.1 + 0.01 * number, seconds=1.0) for number in range(2, 8)]
    dear, cheap = resting(0, 0.8, seconds=10.0), resting(1, 0.79, seconds=1.0)
    assert next_action([dear, cheap, *rest], epochs=10, direction="maximize", may_start=False) == Promote(1, 3)
    same = replace(dear, seconds=1.0)
    assert next_action([same, cheap, *rest], epochs=10, direction="maximize", may_start=False) == Promote(0, 3)


def test_a_dear_promotion_waits_for_cheap_new_trials() -> None:
    rest = [ended(number, 0.02 * number, seconds=1.0) for number in range(1, 30)]
    dear, cheap = resting(0, 0.6, seconds=1000.0), resting(0, 0.6, seconds=1.0)
    assert next_action([dear, *rest], epochs=10, direction="maximize", may_start=True) == Start()
    assert next_action([cheap, *rest], epochs=10, direction="maximize", may_start=True) == Promote(0, 3)


VALUES = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_search_ends_with_every_rule_kept(data: st.DataObject) -> None:
    epochs = data.draw(st.integers(1, 12))
    eta = data.draw(st.integers(2, 4))
    budget = data.draw(st.integers(0, 12))
    presets = data.draw(st.integers(0, min(2, budget)))
    direction: Direction = data.draw(st.sampled_from(["maximize", "minimize"]))
    narrow = data.draw(st.booleans())  # ties are rare among all floats
    value = st.sampled_from([0.0, 0.5, 1.0]) if narrow else VALUES
    steps = rungs(epochs, eta=eta)
    draw = [data.draw(st.lists(value, min_size=epochs, max_size=epochs)) for _ in range(budget)]
    costs = [data.draw(st.sampled_from([0.0, 1.0, 1e-3, 1e6])) for _ in range(budget)]
    trials: list[Progress] = []
    for _ in range(budget * (len(steps) + 1) + 1):
        action = next_action(trials, epochs=epochs, direction=direction, may_start=len(trials) < budget, eta=eta)
        assert action == next_action(
            trials[::-1], epochs=epochs, direction=direction, may_start=len(trials) < budget, eta=eta
        )
        if isinstance(action, Done):
            break
        if isinstance(action, Start):
            number, full = len(trials), len(trials) < presets
            assert number < budget
            trials.append(Progress(number, (), costs[number], "running", full))
            until = epochs if full else steps[0]
        else:
            number, until = action.number, action.until
            assert trials[number].state == "paused"
            assert not trials[number].full
            assert len(trials[number].values) in steps
            assert until in steps
            assert len(trials[number].values) < until <= epochs
        state = "ended" if until == epochs else "paused"
        trials[number] = replace(trials[number], values=tuple(draw[number][:until]), state=state)
    else:
        raise AssertionError("the search did not end")
    assert len(trials) == budget
    assert all(len(trial.values) == epochs for trial in trials if trial.full)
    if trials:
        assert _leader(trials, direction).state == "ended"


def _leader(trials: list[Progress], direction: Direction) -> Progress:
    sign = 1.0 if direction == "maximize" else -1.0

    def best(trial: Progress) -> float:
        return max((-math.inf if math.isnan(value) else sign * value) for value in trial.values)

    return max(trials, key=lambda trial: (best(trial), -trial.number))
