"""Linear heads: trained side by side as each alone, the best one is kept, and one that diverges is passed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_probe import learnable, numbers, tagged
from toy_training import CPU, assert_equal_tensors

from autoft.linear_probe import ProbeSettings, linear_probes, train_stack
from autoft.schedule import rate_at
from autoft.train import NonFiniteError


def test_heads_trained_side_by_side_equal_each_trained_alone() -> None:
    objective, train, wanted, _, _ = learnable()
    knobs = {knob.name: knob.default for knob in objective.head.knobs} | {"dropout": 0.0}
    settings = [ProbeSettings(1e-3, 0.0, 0.0), ProbeSettings(1e-2, 0.1, 0.0), ProbeSettings(3e-2, 1.0, 0.0)]
    _, states = train_stack(train, wanted, objective, settings, knobs, device=CPU, seed=3, steps=20)
    for one, state in zip(settings, states, strict=True):
        torch.manual_seed(0)
        alone = torch.nn.Linear(8, 3)
        _, [start] = train_stack(train, wanted, objective, [one], knobs, device=CPU, seed=3, steps=0)
        alone.load_state_dict({"weight": start["1.weight"], "bias": start["1.bias"]})
        optimizer = torch.optim.AdamW(
            [{"params": [alone.weight], "weight_decay": one.weight_decay}, {"params": [alone.bias], "weight_decay": 0.0}]
        )
        for step in range(20):  # 90 samples are one batch
            for group in optimizer.param_groups:
                group["lr"] = one.learning_rate * rate_at(step, 20, 0.1)
            optimizer.zero_grad()
            objective.head.loss(alone(train), wanted, objective.targets, knobs).backward()
            optimizer.step()
        torch.testing.assert_close(state["1.weight"], alone.weight.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state["1.bias"], alone.bias.detach(), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(states[0]["1.weight"], states[1]["1.weight"], atol=1e-3)


def test_best_head_learns_and_can_be_used_again() -> None:
    objective, train, wanted, validation, truth = learnable()
    best = linear_probes(train, wanted, validation, truth, objective, device=CPU, steps=60)
    nothing = linear_probes(train, wanted, validation, truth, objective, device=CPU, steps=0)
    assert best.score > 0.85 > nothing.score
    outputs = ((validation - best.mean) / best.scale) @ best.weights["1.weight"].T + best.weights["1.bias"]
    torch.testing.assert_close(outputs, best.outputs)
    again = linear_probes(train, wanted, validation, truth, objective, device=CPU, steps=60)
    assert again.settings == best.settings
    assert_equal_tensors(again.weights, best.weights)


def test_head_that_diverges_is_passed_over_and_none_left_is_an_error() -> None:
    objective, *rows = learnable()
    wild, tame = ProbeSettings(1e38, 1e6, 0.0), ProbeSettings(1e-2, 0.0, 0.0)
    best = linear_probes(*rows, objective, device=CPU, steps=10, settings=[wild, tame])
    assert best.settings == tame
    with pytest.raises(NonFiniteError, match="none of 1 linear heads"):
        linear_probes(*rows, objective, device=CPU, steps=10, settings=[wild])


@pytest.mark.parametrize("setup", [numbers, tagged, lambda: tagged(12)], ids=["regression", "tagging", "cut texts"])
def test_heads_for_numbers_and_words_learn(setup: Any) -> None:
    made = setup()
    learned = linear_probes(*made.both(), made.objective, device=CPU, steps=80)
    nothing = linear_probes(*made.both(), made.objective, device=CPU, steps=0)
    assert learned.score > nothing.score + 0.1
