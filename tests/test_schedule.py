"""Learning-rate shapes against those of transformers, and gradual unfreezing against ULMFiT's one layer an epoch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

from autoft.schedule import COOLDOWN, SCHEDULES, SMALLEST_RATE, depth_at, rate_at

TOTAL, WARMUP = 62, 0.2
RISING = round(TOTAL * WARMUP)


def reference(schedule: str) -> list[float]:
    """The factors of transformers' schedule; its warm-up begins at 0, so that only what follows is compared."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if schedule == "cosine":
        scheduler = get_cosine_schedule_with_warmup(optimizer, RISING, TOTAL)
    elif schedule == "linear":
        scheduler = get_linear_schedule_with_warmup(optimizer, RISING, TOTAL)
    else:
        cooling = round(COOLDOWN * (TOTAL - RISING))
        scheduler = get_wsd_schedule(
            optimizer, RISING, cooling, num_stable_steps=TOTAL - RISING - cooling, decay_type="linear"
        )
    found = []
    for _ in range(TOTAL):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_shapes_after_warm_up_are_those_of_transformers_above_the_smallest_rate(schedule: str) -> None:
    wanted = [SMALLEST_RATE + (1 - SMALLEST_RATE) * factor for factor in reference(schedule)]
    found = [rate_at(step, TOTAL, WARMUP, schedule) for step in range(TOTAL)]
    assert found[RISING:] == pytest.approx(wanted[RISING:])
    assert min(found[RISING:]) < 0.2


def test_constant_schedule_stays_at_the_peak_after_warm_up() -> None:
    found = [rate_at(step, TOTAL, WARMUP, "constant") for step in range(TOTAL)]
    assert set(found[RISING:]) == {1.0}
    assert found[:RISING] == sorted(found[:RISING])
    assert found[0] < 0.1


def test_rate_is_held_from_a_step_on() -> None:
    whole = [rate_at(step, TOTAL, WARMUP) for step in range(TOTAL)]
    held = [rate_at(step, TOTAL, WARMUP, hold_from=40) for step in range(TOTAL)]
    assert held[:41] == whole[:41]
    assert set(held[40:]) == {whole[40]}
    assert whole[41] != whole[40]


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of cosine, linear, constant, wsd, but got 'staircase'"):
        rate_at(1, 2, 0.0, "staircase")


@given(
    total=st.integers(1, 400),
    warmup=st.floats(0, 0.5),
    schedule=st.sampled_from(SCHEDULES),
    hold=st.none() | st.integers(0, 400),
)
def test_rates_are_above_zero_and_at_most_the_peak(total: int, warmup: float, schedule: str, hold: int | None) -> None:
    found = [rate_at(step, total, warmup, schedule, hold) for step in range(total)]
    assert all(0 < rate <= 1 and math.isfinite(rate) for rate in found)


def test_one_layer_is_unfrozen_an_epoch_as_in_ulmfit() -> None:
    assert [depth_at(epoch, 5, 4, 0, 0.8) for epoch in range(1, 6)] == [4, 3, 2, 1, 0]


@given(epochs=st.integers(1, 30), stages=st.integers(1, 40), depth=st.integers(0, 40), share=st.floats(0.01, 1.0))
def test_unfreezing_starts_with_the_head_alone_and_only_ever_unfreezes(
    epochs: int, stages: int, depth: int, share: float
) -> None:
    depth = min(depth, stages)
    found = [depth_at(epoch, epochs, stages, depth, share) for epoch in range(1, epochs + 1)]
    assert found[0] == stages
    assert found == sorted(found, reverse=True)
    assert all(depth <= each <= stages for each in found)
    assert found[max(1, round(share * epochs)) :] == [depth] * (epochs - max(1, round(share * epochs)))


def test_without_unfreezing_the_depth_is_always_the_same() -> None:
    assert {depth_at(epoch, 5, 4, 2, 0.0) for epoch in range(1, 6)} == {2}
