"""Mixed weights are the means that they should be, and are taken only where they score strictly better."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy_training import CPU, TARGETS, VALIDATION, build, config, objective, run, split
from toy_training import state as state_of

from autoft.soup import Weights, compatible, greedy_soup, interpolate
from autoft.train import predict

State = dict[str, Tensor]


def state(value: float, *, steps: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """A model's state: a weight, a frozen weight, running statistics, and a whole number."""
    return {
        "backbone.frozen": torch.tensor([0.1, 0.7, math.inf], dtype=dtype),
        "backbone.weight": torch.tensor([value, -value], dtype=dtype),
        "backbone.norm.running_var": torch.tensor([1 + value], dtype=dtype),
        "backbone.norm.num_batches_tracked": torch.tensor(steps),
        "head.weight": torch.tensor([10 * value], dtype=dtype),
    }


def near(target: float) -> Callable[[Weights], float]:
    """A score that is best, at 0.0, where the weight is the target."""
    return lambda weights: -abs(weights["backbone.weight"][0].item() - target)


# --- compatible ---------------------------------------------------------------------------------------


def test_equal_names_shapes_and_dtypes_are_compatible() -> None:
    assert compatible(state(1.0), state(2.0, steps=5)) is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"head.bias": torch.zeros(1)}, "only one of them has `head.bias`"),
        ({"head.weight": torch.zeros(2)}, "the shapes of `head.weight` differ: (1,) and (2,)"),
        (
            {"head.weight": torch.zeros(1, dtype=torch.float16)},
            "the dtypes of `head.weight` differ: torch.float32 and torch.float16",
        ),
    ],
)
def test_what_cannot_be_mixed_is_named(changed: State, reason: str) -> None:
    one, other = state(1.0), state(2.0) | changed
    assert compatible(one, other) == reason
    assert compatible(other, one) is not None
    with pytest.raises(ValueError, match="candidate 1 cannot be mixed with the first: "):
        greedy_soup([one, other], near(0.0), "maximize")


# --- soups --------------------------------------------------------------------------------------------


def test_soup_is_the_mean_of_the_candidates_that_improve_it() -> None:
    candidates = [state(2.0, steps=3), state(9.0, steps=5), state(0.0, steps=7), state(1.0, steps=9)]
    # 2 is 1 away from the best; with 9 it would be 5.5, with 0 it is 1.0, and with 1 nothing is left to gain
    weights, members = greedy_soup(candidates, near(1.0), "maximize")
    assert members == [0, 2]
    assert weights["backbone.weight"].tolist() == [1.0, -1.0]
    assert weights["backbone.norm.running_var"].tolist() == [2.0]
    assert weights["head.weight"].tolist() == [10.0]
    assert weights["backbone.norm.num_batches_tracked"].item() == 3


def test_soup_of_three_is_their_plain_mean() -> None:
    candidates = [state(1.0), state(2.0), state(6.0)]
    weights, members = greedy_soup(candidates, near(3.0), "maximize")
    assert members == [0, 1, 2]
    assert weights["backbone.weight"][0].item() == pytest.approx(3.0, abs=1e-6)


def test_smaller_scores_are_better_where_the_metric_is_minimized() -> None:
    candidates = [state(2.0), state(0.0)]
    assert greedy_soup(candidates, lambda weights: -near(1.0)(weights), "minimize")[1] == [0, 1]
    assert greedy_soup(candidates, lambda weights: -near(1.0)(weights), "maximize")[1] == [0]


@pytest.mark.parametrize("score", [lambda _: 0.5, lambda _: math.nan], ids=["equal", "nan"])
def test_soup_that_is_not_strictly_better_leaves_the_first_model_as_it_is(score: Callable[[Weights], float]) -> None:
    candidates = [state(1.0), state(2.0)]
    weights, members = greedy_soup(candidates, score, "maximize")
    assert members == [0]
    assert all(weights[name] is candidates[0][name] for name in candidates[0])


def test_tensors_that_are_equal_in_all_stay_equal_to_the_last_bit() -> None:
    candidates = [state(value) for value in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    weights, members = greedy_soup(candidates, lambda weights: weights["backbone.weight"][0].item(), "maximize")
    assert len(members) == 6
    assert torch.equal(weights["backbone.frozen"], candidates[0]["backbone.frozen"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_soup_keeps_the_dtype_and_rounds_only_once(dtype: torch.dtype) -> None:
    values = [1.0, 1.0078125, 1.0078125]  # neighbours in bfloat16: a mean that was rounded each time would stay at 1.0
    candidates = [state(value, dtype=dtype) for value in values]
    scores = iter([0.0, 1.0, 2.0])
    weights, members = greedy_soup(candidates, lambda _: next(scores), "maximize")
    assert members == [0, 1, 2]
    assert compatible(weights, candidates[0]) is None
    wanted = torch.tensor(sum(values) / 3, dtype=torch.float64).to(dtype)
    assert weights["backbone.weight"][0].item() == pytest.approx(wanted.item(), abs=1e-7)


def test_candidates_are_not_changed_by_mixing() -> None:
    candidates = [state(2.0), state(0.0)]
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in candidates]
    greedy_soup(candidates, near(1.0), "maximize")
    interpolate(candidates[0], candidates[1], 0.5)
    for one, other in zip(before, candidates, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_single_candidate_is_returned_without_scoring_and_none_is_refused() -> None:
    weights, members = greedy_soup([state(1.0)], lambda _: pytest.fail("nothing to compare"), "maximize")
    assert (members, weights["backbone.weight"].tolist()) == ([0], [1.0, -1.0])
    with pytest.raises(ValueError, match="at least one candidate"):
        greedy_soup([], near(0.0), "maximize")


def test_soup_of_batch_norms_is_loaded_and_scored_with_its_mixed_statistics() -> None:
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    for model in models:
        model(rows)  # training mode: moves the running statistics
    seen: list[Weights] = []

    def score(weights: Weights) -> float:
        models[0].load_state_dict(weights)
        seen.append(weights)
        return float(len(seen))

    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    weights, members = greedy_soup(states, score, "maximize")
    assert members == [0, 1]
    assert weights is seen[-1]
    for name in ("1.running_mean", "1.running_var"):
        assert torch.allclose(weights[name], (states[0][name] + states[1][name]) / 2)


# --- interpolation ------------------------------------------------------------------------------------


def test_interpolation_mixes_the_backbone_and_keeps_the_tuned_head_and_whole_numbers() -> None:
    mixed = interpolate(state(0.0, steps=1), state(4.0, steps=2), 0.25)
    assert mixed["backbone.weight"].tolist() == [1.0, -1.0]
    assert mixed["backbone.norm.running_var"].tolist() == [2.0]
    assert mixed["head.weight"].tolist() == [40.0]
    assert mixed["backbone.norm.num_batches_tracked"].item() == 2
    assert list(mixed) == list(state(0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ends_of_the_interpolation_are_the_two_models(dtype: torch.dtype) -> None:
    pretrained, tuned = state(0.1, dtype=dtype), state(0.7, dtype=dtype)
    for name, tensor in interpolate(pretrained, tuned, 1.0).items():
        assert torch.equal(tensor, tuned[name])
    start = interpolate(pretrained, tuned, 0.0)
    assert torch.equal(start["backbone.weight"], pretrained["backbone.weight"])
    assert torch.equal(start["head.weight"], tuned["head.weight"])


def test_pretrained_model_needs_no_head_of_the_same_shape() -> None:
    pretrained = {name: tensor for name, tensor in state(0.0).items() if not name.startswith("head.")}
    assert interpolate(pretrained, state(4.0), 0.5)["head.weight"].tolist() == [40.0]


@pytest.mark.parametrize(
    ("pretrained", "tuned", "alpha", "message"),
    [
        (state(0.0), state(1.0), 1.5, "`alpha` must be between 0 and 1, but got 1.5"),
        (state(0.0), state(1.0), math.nan, "`alpha` must be between 0 and 1, but got nan"),
        ({}, {"head.weight": torch.zeros(1)}, 0.5, "must begin with `backbone.`, but none does"),
        ({}, state(1.0), 0.5, "cannot be mixed: only one of them has `backbone.frozen`"),
        (
            state(0.0) | {"backbone.weight": torch.zeros(3)},
            state(1.0),
            0.5,
            "cannot be mixed: the shapes of `backbone.weight`",
        ),
    ],
)
def test_interpolation_that_makes_no_sense_is_refused(pretrained: State, tuned: State, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolate(pretrained, tuned, alpha)


# --- trained models -----------------------------------------------------------------------------------


def test_trained_models_of_several_seeds_are_mixed_and_frozen_stages_stay_pretrained() -> None:
    pretrained = state_of(build())
    trained = []
    for seed in (0, 1, 2):
        fit_result, model = run(config(epochs=2, freeze_depth=1, seed=seed))
        assert fit_result.history
        trained.append(state_of(model))
    model, data, judged = build(), split(VALIDATION), objective()

    def score(weights: Weights) -> float:
        model.load_state_dict(weights)
        outputs = predict(model, data, device=CPU, batch_size=8)
        return judged.head.metrics(outputs, data.targets, TARGETS)[judged.metric]

    trained.sort(key=score)  # smaller is better
    single = score(trained[0])
    soup, members = greedy_soup(trained, score, "minimize")
    assert members[0] == 0
    assert score(soup) <= single
    frozen = [name for name in pretrained if torch.equal(pretrained[name], trained[0][name]) and "num" not in name]
    assert len(frozen) >= 2
    falling = iter((3.0, 2.0, 1.0))
    everything = greedy_soup(trained, lambda _: next(falling), "minimize")[0]
    halfway = interpolate(pretrained, trained[0], 0.5)
    for name in frozen:
        if name.startswith("backbone."):
            assert torch.equal(everything[name], pretrained[name])
            assert torch.equal(halfway[name], pretrained[name])
    assert any(not torch.equal(everything[name], trained[0][name]) for name in everything)
