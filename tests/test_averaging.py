"""Averages of weights against torch's own `swa_utils` and the recursion written out; and what a training makes of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import toy_training
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from toy_training import CPU, TRAIN, VALIDATION, assert_equal_tensors, build, config, encode, run, split, state

from autoft.averaging import Average
from autoft.model import FineTuneModel
from autoft.train import Interrupted, predict


def walk(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_plain_average_is_torchs() -> None:
    model = nn.Linear(4, 3)
    reference = AveragedModel(model)
    average = Average(model, None)
    for step in range(5):
        walk(model, step)
        reference.update_parameters(model)
        average.update()
    for name, value in reference.module.state_dict().items():
        torch.testing.assert_close(average.values[name], value)


def test_exponential_average_is_torchs_once_the_first_steps_are_over() -> None:
    model = nn.Linear(4, 3)
    average = Average(model, 0.5)  # reached at the eighth step: (1 + 8) / (10 + 8)
    for step in range(8):
        walk(model, step)
        average.update()
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    reference.module.load_state_dict(average.values)
    reference.n_averaged.fill_(1)
    for step in range(8, 20):
        walk(model, step)
        reference.update_parameters(model)
        average.update()
    for name, value in reference.module.state_dict().items():
        torch.testing.assert_close(average.values[name], value)


def test_first_steps_of_the_exponential_average_weigh_as_tensorflows() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average, wanted = Average(model, 0.99), 1.0
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update()
        decay = min(0.99, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * step
        assert float(average.values["weight"]) == pytest.approx(wanted, rel=1e-5)


def test_average_is_applied_only_within_the_context() -> None:
    model = build()
    average = Average(model, None)
    walk(model, 0)
    average.update()
    first = state(model)
    walk(model, 1)
    second = state(model)
    with average.applied():
        assert_equal_tensors(state(model), first)
    assert_equal_tensors(state(model), second)


def test_frozen_weights_take_no_part() -> None:
    model = build()
    model.freeze(len(model.stages))
    names = set(Average(model, 0.9).values)
    assert not names & {f"backbone.{name}" for name, _ in model.backbone.named_parameters()}
    assert {name for name in names if name.startswith("head.")}


# --- in a training ----------------------------------------------------------------------------------


def trained(**changes: Any) -> tuple[Any, nn.Module]:
    return run(config(epochs=4, **changes))


def test_swa_scores_the_mean_of_the_last_epochs_with_statistics_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(epochs=4, averaging="swa", swa_share=0.5)
    assert settings.averaged_from == 3
    made: list[FineTuneModel] = []
    monkeypatch.setattr(toy_training, "build", lambda *given, **named: made.append(build(*given, **named)) or made[0])
    ends: list[dict[str, torch.Tensor]] = []
    result, _ = run(settings, on_epoch=lambda report: ends.append(state(made[0])))
    mean, last = AveragedModel(build()), build()
    mean.module.load_state_dict(ends[2])
    mean.n_averaged.fill_(1)
    last.load_state_dict(ends[3])
    mean.update_parameters(last)
    for layer in mean.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    data = split(TRAIN)
    batches = data.batches(data.evaluation_batches(settings.batch_size, device=CPU), device=CPU)
    update_bn((inputs[0] for inputs, _ in batches), mean.module)
    outputs = predict(mean.module, split(VALIDATION), device=CPU, batch_size=64)
    wanted = float(torch.nn.functional.cross_entropy(outputs, encode(VALIDATION)))
    assert result.history[3].value == pytest.approx(wanted, rel=1e-5)
    assert_equal_tensors(state(made[0]), ends[3])  # the training itself goes on with its own weights


def test_swa_holds_the_learning_rate_and_ema_does_not() -> None:
    plain, _ = trained()
    held, _ = trained(averaging="swa", swa_share=0.5)
    assert [each.train_loss for each in held.history[:2]] == [each.train_loss for each in plain.history[:2]]
    assert held.history[3].train_loss != plain.history[3].train_loss
    smooth, _ = trained(averaging="ema")
    assert [each.train_loss for each in smooth.history] == [each.train_loss for each in plain.history]
    assert [each.value for each in smooth.history] != [each.value for each in plain.history]


def test_ema_keeps_the_averaged_weights() -> None:
    plain, _ = trained()
    smooth, _ = trained(averaging="ema")
    assert not torch.equal(smooth.weights["head.1.weight"], plain.weights["head.1.weight"])
    own = build()
    own.load_state_dict(smooth.weights)
    outputs = predict(own, split(VALIDATION), device=CPU, batch_size=64)
    loss = float(torch.nn.functional.cross_entropy(outputs, encode(VALIDATION)))
    assert smooth.best.value == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_training_with_an_average_goes_on_from_a_checkpoint_bit_for_bit(averaging: str, tmp_path: Any) -> None:
    settings = config(epochs=5, averaging=averaging, swa_share=0.6)
    wanted, _ = run(settings)

    def stop(report: Any) -> None:
        if report.epoch == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(settings, checkpoint=tmp_path, on_epoch=stop)
    result, _ = run(settings, checkpoint=tmp_path)
    assert [each.value for each in result.history] == [each.value for each in wanted.history]
    assert_equal_tensors(result.weights, wanted.weights)
    losses = [each.train_loss for each in result.history]
    assert all(one != other for one, other in pairwise(losses))
