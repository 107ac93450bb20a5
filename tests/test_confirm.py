"""The preset wins unless it is beaten by more than noise, and confirmation never plans more than the time that is left."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft import confirm
from autoft.confirm import Contender, Verdict, judge, plan
from autoft.specs import Direction

PRESET = Contender(0, True, (0.80, 0.82, 0.81))


def trial(number: int, *values: float) -> Contender:
    return Contender(number, False, values)


def verdict_of(*contenders: Contender, direction: Direction = "maximize") -> Verdict:
    return judge(contenders, direction)


# --- who wins -----------------------------------------------------------------------------------------


def test_trial_that_beats_the_preset_by_more_than_the_noise_wins() -> None:
    verdict = verdict_of(PRESET, trial(4, 0.90, 0.91, 0.89), trial(7, 0.85, 0.85, 0.85))
    assert (verdict.winner, verdict.seeds) == (4, 3)
    assert verdict.mean == pytest.approx(0.9)
    assert verdict.spread == pytest.approx(0.01)
    assert verdict.preset_mean == pytest.approx(0.81)
    assert verdict.preset_spread == pytest.approx(0.01)
    assert verdict.gain == pytest.approx(0.09)
    assert verdict.noise == pytest.approx(math.sqrt(0.01**2 / 3 + 0.01**2 / 3))
    assert verdict.reason == "its mean over 3 seeds is 0.09 better than the preset's, more than the noise of 0.008165"


def test_gain_within_the_noise_leaves_the_preset_the_winner() -> None:
    verdict = verdict_of(PRESET, trial(4, 0.83, 0.81, 0.80))
    assert verdict.winner == 0
    assert verdict.mean == verdict.preset_mean == pytest.approx(0.81)
    assert 0 < verdict.gain < verdict.noise
    assert verdict.reason.startswith("trial 4 is 0.003333 better, within the noise of 0.0")
    assert verdict.reason.endswith("the preset wins unless it is beaten by more than noise")


@pytest.mark.parametrize(("above", "winner"), [(0.999, 0), (1.001, 4)])
def test_the_noise_is_one_standard_error_of_the_difference(above: float, winner: int) -> None:
    error = math.sqrt(2 * 0.01**2 / 3)
    better = [value + above * error for value in PRESET.values]
    assert verdict_of(PRESET, trial(4, *better)).winner == winner


@pytest.mark.parametrize(("value", "winner"), [(0.5, 4), (0.1, 0)])
def test_smaller_wins_where_the_metric_is_minimized(value: float, winner: int) -> None:
    preset = Contender(0, True, (0.80, 0.82, 0.81))
    other = trial(4, value, value + 0.01, value - 0.01)
    assert verdict_of(preset, other, direction="minimize").winner == 4
    assert verdict_of(preset, other).winner == 0
    assert verdict_of(preset, trial(4, 1.1 - value, 1.1 - value), direction="minimize").winner == winner


def test_equal_means_are_the_presets() -> None:
    for direction in ("maximize", "minimize"):
        verdict = verdict_of(trial(0, 0.5, 0.5, 0.5), Contender(3, True, (0.5, 0.5, 0.5)), direction=direction)
        assert (verdict.winner, verdict.gain, verdict.reason) == (3, 0.0, "no other has a better mean")


def test_without_noise_any_gain_counts() -> None:
    verdict = verdict_of(Contender(0, True, (0.5, 0.5, 0.5)), trial(4, 0.51, 0.51, 0.51))
    assert (verdict.winner, verdict.noise) == (4, 0.0)
    assert "not confirmed" not in verdict.reason


def test_with_few_seeds_the_spread_is_pooled_over_all_contenders() -> None:
    # variances 0.0002 (1 degree of freedom) and 0.0001 (2): pooled 0.0004 / 3
    verdict = verdict_of(Contender(0, True, (0.80, 0.82)), trial(4, 0.90), trial(7, 0.70, 0.71, 0.72))
    assert verdict.winner == 4
    assert verdict.noise == pytest.approx(math.sqrt(0.0004 / 3 * (1 / 2 + 1 / 1)))
    assert verdict.spread == 0.0


def test_two_seeds_of_each_side_are_too_few_for_a_spread_of_their_own() -> None:
    preset, close = Contender(0, True, (0.80, 0.80)), trial(4, 0.81, 0.81)
    assert verdict_of(preset, close).winner == 4
    verdict = verdict_of(preset, close, trial(7, 0.6, 0.8))
    assert verdict.winner == 0
    assert verdict.noise == pytest.approx(math.sqrt(0.02 / 3 * (1 / 2 + 1 / 2)))


def test_lucky_single_seed_does_not_hide_a_trial_that_is_better_over_several() -> None:
    preset = Contender(0, True, (0.78, 0.86, 0.82))
    verdict = verdict_of(preset, trial(4, 0.85), trial(7, 0.846, 0.847, 0.845))
    assert (verdict.winner, verdict.seeds) == (7, 3)
    assert verdict_of(preset, trial(4, 0.95), trial(7, 0.846, 0.847, 0.845)).winner == 4


@pytest.mark.parametrize(("value", "winner"), [(0.8100001, 4), (0.81, 0), (0.8, 0)])
def test_single_seed_each_is_decided_by_the_value_and_said_not_to_be_confirmed(value: float, winner: int) -> None:
    verdict = verdict_of(Contender(0, True, (0.81,)), trial(4, value))
    assert (verdict.winner, verdict.noise, verdict.spread) == (winner, 0.0, 0.0)
    assert verdict.gain == pytest.approx(value - 0.81)
    assert verdict.reason.endswith("not confirmed over seeds")


def test_without_a_preset_the_best_mean_wins_and_ties_are_the_earlier_trials() -> None:
    verdict = verdict_of(trial(9, 0.4, 0.6), trial(4, 0.6, 0.4), trial(5, 0.3, 0.3))
    assert (verdict.winner, verdict.preset_mean, verdict.preset_spread, verdict.noise) == (4, None, None, 0.0)
    assert verdict.reason == "it has the best mean over 2 seeds; there is no preset to beat"


def test_preset_alone_wins() -> None:
    verdict = verdict_of(PRESET)
    assert (verdict.winner, verdict.gain, verdict.reason) == (0, 0.0, "nothing else is there to compare with the preset")


@pytest.mark.parametrize(
    ("contenders", "message"),
    [
        ((), "there must be contenders"),
        ((PRESET, trial(0, 0.5)), r"different numbers, but got \[0, 0\]"),
        ((PRESET, Contender(1, True, (0.5,))), r"may be the preset, but got \[0, 1\]"),
        ((PRESET, trial(1)), r"trial 1 must have finite values, one or more, but has \(\)"),
        ((PRESET, trial(1, 0.5, math.nan)), "trial 1 must have finite values"),
        ((PRESET, trial(1, math.inf)), "trial 1 must have finite values"),
    ],
)
def test_contenders_that_cannot_be_judged_are_refused(contenders: tuple[Contender, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(contenders, "maximize")


values = st.lists(st.integers(0, 1000).map(lambda value: value / 1000), min_size=1, max_size=5).map(tuple)
contests = st.lists(values, min_size=1, max_size=5).map(
    lambda all_values: [Contender(number, number == 0, found) for number, found in enumerate(all_values)]
)


@given(contests, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_the_mirrored_metric_has_the_same_winner(
    contenders: list[Contender], rng: random.Random
) -> None:
    verdict = judge(contenders, "maximize")
    shuffled = rng.sample(contenders, len(contenders))
    assert judge(shuffled, "maximize") == verdict
    mirrored = judge(
        [Contender(each.number, each.preset, tuple(-v for v in each.values)) for each in contenders], "minimize"
    )
    assert (mirrored.winner, mirrored.gain, mirrored.noise) == (verdict.winner, verdict.gain, verdict.noise)


@given(contests)
def test_winner_is_never_worse_than_the_preset(contenders: list[Contender]) -> None:
    verdict = judge(contenders, "maximize")
    assert verdict.preset_mean is not None
    assert verdict.mean >= verdict.preset_mean
    if verdict.winner != 0:
        assert verdict.gain > verdict.noise
        assert verdict.mean - verdict.preset_mean == pytest.approx(verdict.gain)
    elif all(len(each.values) == len(contenders[0].values) >= 3 for each in contenders):
        for other in contenders[1:]:
            assert judge([contenders[0], other], "maximize").winner == 0


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.15, 0.25), (-1.0, 0.0, 0.04), (1.0, 0.55, 0.67)])
def test_rule_is_as_strict_as_its_documentation_says(shift: float, low: float, high: float) -> None:
    rng = random.Random(0)
    replaced = 0
    for _ in range(2000):
        preset = Contender(0, True, tuple(rng.gauss(0, 1) for _ in range(3)))
        other = trial(1, *(rng.gauss(shift, 1) for _ in range(3)))
        replaced += judge([preset, other], "maximize").winner
    assert low < replaced / 2000 < high


# --- what to train ------------------------------------------------------------------------------------


def test_plan_goes_seed_by_seed_with_preset_and_leader_first() -> None:
    seconds = dict.fromkeys((4, 7, 9, 0), 1.0)
    wanted = plan([4, 7, 9, 0], preset=0, seeds=2, seconds=seconds, seconds_left=None)
    assert wanted == [(0, 0), (4, 0), (7, 0), (9, 0), (0, 1), (4, 1), (7, 1), (9, 1)]


def test_plan_leaves_out_what_is_done() -> None:
    done = {(4, 0), (0, 0), (0, 1)}
    assert plan([4, 0], preset=0, seeds=3, seconds={4: 1, 0: 1}, seconds_left=None, done=done) == [(4, 1), (0, 2), (4, 2)]


def test_plan_without_a_preset_begins_with_the_leader() -> None:
    assert plan([4, 7], preset=None, seeds=1, seconds={4: 1, 7: 1}, seconds_left=None) == [(4, 0), (7, 0)]


def test_plan_drops_a_trial_that_is_too_slow_and_goes_on_with_cheaper_ones() -> None:
    wanted = plan([4, 7, 0], preset=0, seeds=3, seconds={4: 100.0, 7: 2.0, 0: 3.0}, seconds_left=10.0)
    assert wanted == [(0, 0), (7, 0), (0, 1), (7, 1)]
    assert plan([4, 0], preset=0, seeds=3, seconds={4: 1.0, 0: 1.0}, seconds_left=0.0) == []
    assert plan([4, 0], preset=0, seeds=3, seconds={4: 1.0, 0: 1.0}, seconds_left=-5.0) == []


def test_more_workers_afford_more() -> None:
    seconds = {4: 4.0, 0: 4.0}
    assert len(plan([4, 0], preset=0, seeds=3, seconds=seconds, seconds_left=9.0)) == 2
    assert len(plan([4, 0], preset=0, seeds=3, seconds=seconds, seconds_left=9.0, workers=2)) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": 0}, "seeds and workers must be at least 1, but are 0 and 1"),
        ({"workers": 0}, "seeds and workers must be at least 1, but are 3 and 0"),
        ({"preset": 5}, r"one of the contenders \[4, 0\], but is 5"),
        ({"numbers": [4, 0, 4]}, r"must be different, but are \[4, 0, 4\]"),
        ({"seconds": {4: -1.0, 0: 1.0}}, "seconds of trial 4 must be a finite number from 0 on, but are -1.0"),
        ({"seconds": {4: 1.0, 0: math.nan}}, "seconds of trial 0 must be a finite number"),
    ],
)
def test_plan_refuses_what_has_no_plan(changed: dict[str, object], message: str) -> None:
    asked = {"numbers": [4, 0], "preset": 0, "seeds": 3, "seconds": {4: 1.0, 0: 1.0}, "seconds_left": None} | changed
    numbers = asked.pop("numbers")
    with pytest.raises(ValueError, match=message):
        plan(numbers, **asked)  # type: ignore[arg-type]


def ends(wanted: list[tuple[int, int]], seconds: dict[int, float], workers: int) -> list[float]:
    """Run a plan as workers do: each takes the next training as soon as it is free."""
    free_at = [0.0] * workers
    found = []
    for number, _ in wanted:
        free_at.sort()
        free_at[0] += seconds[number]
        found.append(free_at[0])
    return found


@given(
    costs=st.lists(st.integers(0, 50).map(float), min_size=1, max_size=5),
    place=st.integers(0, 4),
    seeds=st.integers(1, 4),
    left=st.none() | st.integers(-1, 300).map(float),
    workers=st.integers(1, 3),
    done=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 3))),
)
def test_plan_holds_its_promises(
    costs: list[float], place: int, seeds: int, left: float | None, workers: int, done: set[tuple[int, int]]
) -> None:
    numbers = list(range(len(costs)))
    seconds = dict(enumerate(costs))
    preset = place if place < len(costs) else None
    wanted = plan(numbers, preset=preset, seeds=seeds, seconds=seconds, seconds_left=left, done=done, workers=workers)
    assert len(set(wanted)) == len(wanted)
    assert not set(wanted) & done
    assert [index for _, index in wanted] == sorted(index for _, index in wanted)
    everything = {(number, index) for number in numbers for index in range(seeds)} - done
    if left is None:
        assert set(wanted) == everything
    else:
        assert all(end <= left for end in ends(wanted, seconds, workers))
    for number, index in everything - set(wanted):  # once dropped, for good
        assert not [later for one, later in wanted if one == number and later > index]
    for index in range(seeds):
        of_seed = [number for number, at in wanted if at == index]
        rank = {number: (number != preset, number) for number in numbers}
        assert of_seed == sorted(of_seed, key=rank.__getitem__)


def test_examples_in_the_documentation_hold() -> None:
    import doctest

    found = doctest.testmod(confirm)
    assert found.attempted >= 4
    assert not found.failed
