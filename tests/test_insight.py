"""What a search teaches is told where it is true, and not told where noise could have made it."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from commands import autoft, command
from conftest import FinishedRun
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autoft.errors import RunError
from autoft.insight import Insight, consider, look_into
from autoft.insight.dependence import Dependence, Surrogate
from autoft.insight.evidence import Evidence, off_thresholds, read_run, seed_noise, weigh
from autoft.insight.importance import importances
from autoft.insight.page import render, write_page
from autoft.insight.sentences import tell, too_few
from autoft.insight.tables import as_json, tables
from autoft.specs import Direction

STAGES = 12
SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "freeze_depth": IntDistribution(0, STAGES),
    "dropout": FloatDistribution(0.0, 0.4),
    "schedule": CategoricalDistribution(["cosine", "linear"]),
}
NOISE = 0.004
Truth = Callable[[Mapping[str, Any]], float]


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truths as clear as these are found with fewer."""
    monkeypatch.setattr("autoft.insight.dependence.TREES", 80)
    monkeypatch.setattr("autoft.insight.importance.SHUFFLES", 40)


def by_rate(params: Mapping[str, Any]) -> float:
    """Best at 3e-4, and nothing else matters."""
    return 0.94 - 0.06 * (np.log10(params["learning_rate"]) - np.log10(3e-4)) ** 2


def by_depth(params: Mapping[str, Any]) -> float:
    """Up to eight frozen stages cost nothing, a ninth does."""
    return 0.94 if params["freeze_depth"] <= 8 else 0.80


def nothing(params: Mapping[str, Any]) -> float:
    return 0.94


def sampled(what: BaseDistribution, rng: np.random.Generator) -> Any:
    if isinstance(what, CategoricalDistribution):
        return what.choices[rng.integers(len(what.choices))]
    if isinstance(what, IntDistribution):
        return int(rng.integers(what.low, what.high + 1))
    assert isinstance(what, FloatDistribution)
    if what.log:
        return float(np.exp(rng.uniform(np.log(what.low), np.log(what.high))))
    return float(rng.uniform(what.low, what.high))


def searched(
    truth: Truth,
    trials: int = 60,
    *,
    space: Mapping[str, BaseDistribution] = SPACE,
    epochs: int = 4,
    halving: bool = False,
    seed: int = 0,
) -> list[FrozenTrial]:
    """Trials at random points, whose scores are the truth with noise; a frozen stage makes an epoch a tenth cheaper.

    A trial gains 0.1 from its first epoch to its last. With halving, what is in the worse half after one epoch stops there.
    """
    rng = np.random.default_rng(seed)
    points = [{name: sampled(what, rng) for name, what in space.items()} for _ in range(trials)]
    ends = [truth(point) + rng.normal(0, NOISE / 2) for point in points]
    middle = np.median(ends)
    made = []
    for point, end in zip(points, ends, strict=True):
        trained = 1 if halving and end < middle else epochs
        curve = {epoch: end - 0.1 * (epochs - epoch) / (epochs - 1) for epoch in range(1, trained + 1)}
        made.append(
            create_trial(
                state=TrialState.COMPLETE if trained == epochs else TrialState.PRUNED,
                value=curve[trained],
                params=point,
                distributions=dict(space),
                intermediate_values=curve,
                user_attrs={"seconds": trained * 2.0 * 0.9 ** point.get("freeze_depth", 0)},
            )
        )
    return made


def weighed(trials: Sequence[FrozenTrial], direction: Direction = "maximize", **known: Any) -> Evidence:
    """Trials as a study numbers them."""
    numbered = [copy.copy(trial) for trial in trials]
    for number, trial in enumerate(numbered):
        trial.number = number
    return weigh(numbered, direction, **{"metric": "accuracy", **known})


def learned(trials: Sequence[FrozenTrial], *parameters: str, **known: Any) -> Insight:
    known = {"seed_noise": NOISE, "stages": STAGES, **known}
    return consider(weighed(trials, **known), parameters)


@functools.cache
def of(truth: Truth, trials: int = 60) -> Insight:
    """What random points tell of a truth; made once for all tests."""
    return learned(searched(truth, trials))


def sentence(insight: Insight, words: str) -> str:
    """The one sentence with some words."""
    (found,) = [one for one in insight.sentences if words in one]
    return found


def dependence(insight: Insight, name: str) -> Dependence:
    return next(found for found in insight.dependences if found.name == name)


# --- what a trial counts with -------------------------------------------------------------------------


def trial_of(*values: float, start: str = "fresh", state: TrialState = TrialState.PRUNED, **facts: Any) -> Any:
    return create_trial(
        state=state,
        value=values[-1] if values and state != TrialState.FAIL else None,
        params={"head_start": start},
        distributions={"head_start": CategoricalDistribution(["fresh", "probe"])},
        intermediate_values=dict(enumerate(values, 1)),
        user_attrs=facts,
    )


def values_of(evidence: Evidence) -> list[float]:
    return [pytest.approx(trial.value) for trial in evidence.trials]


def test_stopped_trial_counts_with_the_median_gain_of_those_that_went_on() -> None:
    whole = [trial_of(0.5, 0.6, 0.7), trial_of(0.5, 0.7, 0.8), trial_of(0.5, 0.8, 1.0)]
    found = weighed([*whole, trial_of(0.4), trial_of(0.4, 0.6)])
    assert values_of(found) == [0.7, 0.8, 1.0, 0.4 + 0.3, 0.6 + 0.1]
    assert [trial.measured for trial in found.trials] == [0.7, 0.8, 1.0, 0.4, 0.6]
    assert found.epochs == 3


def test_gain_is_that_of_trials_that_start_alike() -> None:
    whole = [trial_of(0.5, 0.9), trial_of(0.8, 0.81, start="probe")]
    found = weighed([*whole, trial_of(0.4), trial_of(0.7, start="probe")])
    assert values_of(found)[2:] == [0.8, 0.71]


def test_best_epoch_counts_whatever_the_direction() -> None:
    trials = [trial_of(0.5, 0.4, 0.6)]
    assert values_of(weighed(trials, "minimize")) == [0.4]
    assert values_of(weighed(trials)) == [0.6]


def test_trials_that_failed_repeat_or_have_not_begun_are_left_out() -> None:
    trials = [
        trial_of(0.5),
        trial_of(0.6, state=TrialState.FAIL),
        trial_of(0.6, duplicate_of=0),
        create_trial(state=TrialState.WAITING),
        trial_of(float("nan"), state=TrialState.FAIL),
    ]
    found = weighed(trials)
    assert (len(found.trials), found.left_out) == (1, 4)


def test_seed_noise_pools_the_confirmed_trials() -> None:
    assert seed_noise([{"0": 0.0, "1": 2.0}, {"0": 5.0, "1": 5.0}]) == pytest.approx(2**0.5)
    assert seed_noise([]) is None
    assert seed_noise([{"0": 0.9}]) is None
    assert seed_noise([{"0": 0.9, "1": 0.9}]) is None, "equal scores do not say that there is no noise"


def test_what_is_off_is_told_by_the_table_and_the_study() -> None:
    assert off_thresholds({})["mixup"] == 0.1
    assert "learning_rate" not in off_thresholds({})
    assert off_thresholds({"mixup": "search"})["mixup"] == 0.1
    assert "mixup" not in off_thresholds({"mixup": {"low": 0.0, "high": 1.0, "log": False}})
    assert off_thresholds({"knob": {"low": 2, "high": 3, "or_zero": True}})["knob"] == 2.0


# --- what matters -------------------------------------------------------------------------------------


def test_only_the_learning_rate_matters_and_is_named() -> None:
    found = of(by_rate)
    assert found.importances is not None
    first, *others = found.importances.settings
    assert (first.name, first.stands_out) == ("learning_rate", True)
    assert first.share > 0.5
    assert not any(setting.stands_out for setting in others)
    assert sum(setting.share for setting in found.importances.settings) == pytest.approx(1.0)
    assert sentence(found, "matters most").startswith(f"`learning_rate` matters most ({100 * first.share:.0f} %")


def test_setting_that_came_along_with_good_trials_is_not_said_to_matter() -> None:
    """What a search does: as its learning rates get better, it stays with one dropout, which has no effect."""
    trials = searched(by_rate, 80)
    for trial in trials:
        if by_rate(trial.params) > 0.93:
            trial.params["dropout"] = 0.2
    found = learned(trials)
    assert {setting.name for setting in found.importances.settings if setting.stands_out} == {"learning_rate", "dropout"}
    assert "may only have come along" in sentence(found, "`dropout` goes with the best fifth")
    assert "`learning_rate` matters" in sentence(found, "matters")


def test_where_nothing_matters_no_setting_is_named() -> None:
    standing = 0
    for seed in range(10):
        found = importances(weighed(searched(nothing, 40, seed=seed)))
        assert found is not None
        standing += found.settings[0].stands_out
    assert standing <= 2  # one in twenty is expected
    said = of(nothing, 40).sentences
    assert any(one.startswith("no setting stands out") for one in said)
    assert not any("matters most" in one for one in said)


def test_stopped_trials_teach_as_well() -> None:
    """The bad ones are those that are stopped: without them, or compared at equal epochs, nothing would seem to matter."""
    found = learned(searched(by_rate, halving=True))
    assert found.importances is not None
    assert found.importances.settings[0].name == "learning_rate"
    rates = dependence(found, "learning_rate")
    assert rates.points[-1].mean < 0.88 < 0.92 < max(point.mean for point in rates.points)


def test_less_is_better_where_the_metric_is_a_loss() -> None:
    trials = searched(lambda params: -by_rate(params))
    found = learned(trials, direction="minimize")
    low, high = best_between(found)
    assert low < 3e-4 < high


def best_between(insight: Insight) -> tuple[float, float]:
    found = re.search(r"best between (\S+) and (\S+) \(", sentence(insight, "`learning_rate`: best"))
    assert found is not None
    return float(found[1]), float(found[2])


def test_best_learning_rates_are_told_and_are_those() -> None:
    low, high = best_between(of(by_rate, 80))
    assert 3e-5 < low < 3e-4 < high < 3e-3


def test_best_learning_rate_at_the_end_of_what_was_tried_is_told_as_such() -> None:
    found = learned(searched(lambda params: 0.9 + 0.05 * np.log10(params["learning_rate"] / 1e-5)))
    assert "on, up to the largest value tried" in sentence(found, "`learning_rate`: best")


# --- how deep to freeze -------------------------------------------------------------------------------


def test_flat_depth_is_as_good_as_none_and_cheaper() -> None:
    said = sentence(of(by_rate, 80), "freezing")
    assert f"of {STAGES} stages is as good as none" in said
    assert "within the noise of 0.004" in said
    times = re.search(r"and ([\d.]+) times cheaper", said)
    assert times is not None
    depth = re.match(r"freezing (\d+) of", said)
    assert depth is not None
    assert float(times[1]) == pytest.approx(0.9 ** -int(depth[1]), rel=0.2)


def test_cliff_is_named_and_the_depth_before_it_recommended() -> None:
    found = of(by_depth, 80)
    assert "falls between 8 and 9 frozen: from 0.9" in sentence(found, "accuracy falls")
    assert re.match(r"freezing [678] of 12 stages is as good as none", sentence(found, "freezing"))
    flat = of(by_rate, 80)
    assert not any("falls" in one for one in flat.sentences)


def test_depth_that_helps_is_better_by_more_than_noise() -> None:
    found = learned(searched(lambda params: 0.9 + 0.005 * params["freeze_depth"], 80))
    assert "is better than none" in sentence(found, "freezing")
    assert "more than the noise of 0.004" in sentence(found, "freezing")


def test_depth_that_is_worse_from_the_first_stages_on_is_told() -> None:
    found = learned(searched(lambda params: 0.94 - 0.01 * params["freeze_depth"], 80))
    assert re.match(r"freezing [1-3] of 12 stages is already worse than none", sentence(found, "freezing"))
    assert not any("falls" in one for one in found.sentences), "a slope is no cliff"


def test_trial_in_flight_costs_what_was_timed() -> None:
    """It has trained two epochs since it rested after two, and their seconds are stored when it rests again."""
    (trial,) = weighed([trial_of(0.5, 0.6, 0.7, 0.8, seconds=6.0, epochs=2)]).trials
    assert trial.seconds == 3.0


def test_depth_is_not_called_as_good_where_it_is_not_known_well_enough() -> None:
    """A few trials of very different values: the difference happens to be anything, and no one knows it."""
    rng = np.random.default_rng(0)
    found = learned(searched(lambda params: 0.8 + 0.1 * rng.random(), 15, space={"freeze_depth": IntDistribution(0, 3)}))
    assert not any("as good as" in one or "better than" in one for one in found.sentences)
    assert "cannot be told apart" in sentence(found, "freezing")


def test_depth_of_several_backbones_is_told_in_shares() -> None:
    space = {name: what for name, what in SPACE.items() if name != "freeze_depth"}
    space["freeze_fraction"] = FloatDistribution(0.0, 1.0)
    found = learned(searched(lambda params: 0.94 if params["freeze_fraction"] < 0.6 else 0.8, 120, space=space), stages=None)
    assert re.match(r"freezing (42|50|58) % of the stages is as good as", sentence(found, "freezing"))
    assert "% of the stages frozen: from 0.9" in sentence(found, "accuracy falls")


def test_old_run_without_seconds_says_nothing_of_cost() -> None:
    trials = searched(by_rate, 80)
    for trial in trials:
        trial.user_attrs.clear()
    found = learned(trials)
    assert "as good as none" in sentence(found, "freezing")
    assert "cheaper" not in sentence(found, "freezing")
    assert "SECONDS/EPOCH" not in tables(found)[1][0]


# --- other settings -----------------------------------------------------------------------------------

MIXUP = {**SPACE, "mixup": FloatDistribution(-0.2, 1.0)}


def test_off_has_a_point_of_its_own() -> None:
    trials = searched(lambda params: 0.94 if params["mixup"] < 0.1 else 0.8, 60, space=MIXUP)
    found = learned(trials, "mixup", off_below={"mixup": 0.1})
    off, *on = dependence(found, "mixup").points
    assert (off.off, off.value) == (True, 0.0)
    assert off.trials == sum(trial.params["mixup"] < 0.1 for trial in trials)
    assert min(point.value for point in on) >= 0.1
    assert off.mean > 0.9 > 0.85 > max(point.mean for point in on)
    assert "off is as good as any value" in sentence(found, "`mixup`:")
    assert any(row[0] == "off" for table in tables(found) for row in table)


def test_setting_whose_study_has_no_off_has_no_such_point() -> None:
    """As in runs from before a setting could be off: its whole range lies above the threshold."""
    trials = searched(nothing, space={**SPACE, "mixup": FloatDistribution(0.1, 1.0)})
    found = learned(trials, "mixup", off_below={"mixup": 0.1})
    assert not any(point.off for point in dependence(found, "mixup").points)


def test_choice_is_judged_by_its_values() -> None:
    trials = searched(lambda params: 0.94 if params["schedule"] == "linear" else 0.8)
    found = learned(trials)
    assert [point.value for point in dependence(found, "schedule").points] == ["cosine", "linear"]
    assert sentence(found, "`schedule`:").startswith("`schedule`: best `linear`")


def test_settings_whose_values_cannot_be_told_apart_share_a_sentence() -> None:
    found = consider(of(nothing, 40).evidence, ["schedule", "dropout"])
    last = [one for one in found.sentences if one.endswith("the values that were tried cannot be told apart")]
    assert last == ["`learning_rate`, `schedule`, `dropout`: the values that were tried cannot be told apart"]


def test_choice_that_one_trial_had_is_not_judged() -> None:
    trials = searched(nothing, space={"dropout": SPACE["dropout"]})
    for index, trial in enumerate(trials):
        trial.params["schedule"] = "linear" if index == 3 else "cosine"
        trial.distributions["schedule"] = SPACE["schedule"]
    assert "nothing can be said" in sentence(learned(trials, "schedule"), "`schedule`:")


def test_setting_that_only_some_trials_have_is_no_obstacle() -> None:
    trials = searched(by_rate)
    for trial in trials[::3]:
        del trial.params["dropout"], trial.distributions["dropout"]
    found = learned(trials, "dropout")
    assert sum(point.trials for point in dependence(found, "dropout").points) == 40


def test_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(RunError, match=r"one that was searched, but got 'learning_rat'\nhint: did you mean learning_rate"):
        consider(of(by_rate).evidence, ["learning_rat"])
    with pytest.raises(RunError, match="searched were: learning_rate, freeze_depth"):
        consider(of(by_rate, 2).evidence, ["x"])


# --- too few trials, noise ----------------------------------------------------------------------------


def test_two_trials_are_no_ground_for_conclusions() -> None:
    found = of(by_rate, 2)
    assert found.warning is not None
    assert "nothing can be concluded: that needs 10 trials" in found.warning
    assert found.warning.endswith("there are 2")
    assert (found.importances, found.dependences, found.sentences) == (None, (), ())
    assert tables(found) == []
    assert "nothing can be concluded" in render(found)


def test_warning_goes_as_trials_come() -> None:
    warnings = [too_few(weighed(searched(by_rate, count))) for count in (9, 10, 24, 25)]
    assert [None if one is None else one.split(":")[0] for one in warnings] == [
        "nothing can be concluded",
        "hints, no more",
        "hints, no more",
        None,
    ]


def test_equal_values_have_no_importances() -> None:
    trials = [trial_of(0.5, start=start) for start in ("fresh", "probe") * 6]
    assert importances(weighed(trials)) is None


def test_noise_is_the_surrogates_where_no_trial_was_confirmed() -> None:
    found = learned(searched(by_rate, 80), seed_noise=None)
    assert found.noise is not None
    assert NOISE / 4 < found.noise < 0.05
    assert "no trial was trained with several seeds" in found.sentences[-1]
    assert "different seeds" in of(by_rate, 80).sentences[-1]


def test_more_noise_says_less() -> None:
    evidence = weighed(searched(by_depth, 80), stages=STAGES)
    found = [Surrogate(evidence).dependence("freeze_depth")]
    assert any("falls" in one for one in tell(evidence, None, found, 0.01, "seeds"))
    assert not any("falls" in one for one in tell(evidence, None, found, 0.5, "seeds"))


# --- page and command ---------------------------------------------------------------------------------


def test_page_works_offline_and_has_each_plot_once(tmp_path: Path) -> None:
    trials = searched(lambda params: 0.94 if params["mixup"] < 0.1 else 0.8, 30, space=MIXUP)
    found = learned(trials, "schedule", "mixup", off_below={"mixup": 0.1})
    write_page(found, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(text) > 1_000_000, "plotly's script must be inside"
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text)
    names = ["What matters", *(f"<code>{one.name}</code>" for one in found.dependences)]
    assert len(names) == 5
    assert [text.count(f"<h2>{name}</h2>") for name in names] == [1] * 5
    assert len(re.findall(r"<script[^>]*>\s*window.PLOTLYENV", text)) == 5
    assert "prefers-color-scheme: dark" in text
    assert "`" not in text[text.index("<ul>") : text.index("</ul>")]


def test_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--output"):
        write_page(of(by_rate, 2), tmp_path / "missing" / "page.html")


def test_all_numbers_are_json() -> None:
    content = json.loads(json.dumps(as_json(of(by_rate, 30)), allow_nan=False))
    assert content["dependences"][0]["points"][0].keys() == {"value", "off", "mean", "spread", "seconds", "trials"}
    assert len(content["trials"]) == 30
    assert content["importances"]["settings"][0]["name"] == "learning_rate"


def stored(folder: Path, trials: list[FrozenTrial]) -> Path:
    """A run folder with a study, as an interrupted search leaves it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir()
    study = optuna.create_study(storage=f"sqlite:///{folder.parent / 'study.db'}", study_name="x", direction="maximize")
    study.add_trials(trials)
    shutil.move(folder.parent / "study.db", folder)  # a URL cannot name every folder
    return folder


def test_interrupted_run_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    run = stored(tmp_path / "a?b c#", searched(by_rate, 12))
    (run / "study.yaml").write_text("space:\n  dropout: {low: 0.1, high: 0.5, or_zero: true}\n")
    (run / "log.jsonl").write_text(
        '{"event": "preflight", "backbone": "a", "stages": 14}\n{"event": "search", "metric": "f1"}\n{"event": "sea'
    )
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    found = read_run(run)
    assert (len(found.trials), found.metric, found.stages, found.seed_noise) == (12, "f1", 14, None)
    assert found.off_below == {"dropout": 0.1}
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "is no folder"),
        (lambda run: (run / "study.db").unlink(), "has no study.db"),
        (lambda run: (run / "study.db").write_text("no database " * 100), "cannot be read"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], words: str) -> None:
    run = stored(tmp_path / "run", searched(by_rate, 2))
    spoil(run)
    with pytest.raises(RunError, match=words):
        look_into(run)


def test_run_without_an_epoch_is_refused(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", [create_trial(state=TrialState.WAITING)])
    with pytest.raises(RunError, match=r"of the 1 in .* none has"):
        look_into(run)


def test_command_prints_words_tables_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored(tmp_path / "run", searched(by_rate, 30))
    monkeypatch.setattr("autoft.cli.log_to_stderr", lambda: None)
    shown = command(monkeypatch, capsys, "insight", run, "--parameter", "dropout")
    assert shown.code == 0, shown.err
    assert "`learning_rate` matters most" in shown.out
    assert {"SETTING", "FREEZE_DEPTH", "LEARNING_RATE", "DROPOUT", "page"} <= set(
        re.findall(r"^\w+", shown.out, re.MULTILINE)
    )
    assert (run / "insight.html").stat().st_size > 1_000_000
    refused = command(monkeypatch, capsys, "insight", run, "--parameter", "dropuot")
    assert (refused.code, refused.out) == (2, "")
    assert "did you mean dropout?" in refused.err


def test_real_run_of_three_trials_is_shown_without_conclusions(
    finished: FinishedRun, toy_env: dict[str, str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    shown = autoft("insight", finished.path, "--json", "--output", page, env=toy_env)
    assert shown.code == 0, shown.err
    content = json.loads(shown.out)
    assert (len(content["trials"]), content["epochs"], content["metric"]) == (3, 2, "accuracy")
    assert all(trial["seconds"] > 0 and "learning_rate" in trial["params"] for trial in content["trials"])
    assert content["seed_noise"] is None or content["seed_noise"] > 0
    assert content["stages"] >= 1
    assert "nothing can be concluded" in content["warning"]
    assert content["page"] == str(page)
    assert page.exists()
    assert not (finished.path / "insight.html").exists()
    missing = autoft("insight", tmp_path / "nowhere", env=toy_env)
    assert missing.code == 2
    assert "hint:" in missing.err
