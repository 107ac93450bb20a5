"""A step's gradients against the losses of the papers, written out: R-Drop, adversarial training, SAM, mixed batches."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_training import (
    CPU,
    HEAD,
    KNOBS,
    TARGETS,
    VALIDATION,
    assert_equal_tensors,
    build,
    config,
    encode,
    run,
    split,
    state,
)

from autoft.gradients import Gradients, Part
from autoft.mixing import Mixed
from autoft.regularize import SAM, Adversary
from autoft.tasks.divergence import of_classes
from autoft.train import predict

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (8,), generator=torch.Generator().manual_seed(1))
PLAIN = {**KNOBS, "dropout": 0.0}


class Net(nn.Module):
    """Dropout that repeats with the seed, BatchNorm, and a layer for an attack."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(inputs)))))


def gradients(model: nn.Module, **changes: Any) -> Gradients:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Gradients(model, HEAD, TARGETS, PLAIN, autocast=nullcontext, scaler=scaler, **changes)


def of_step(model: nn.Module, parts: list[Part], **changes: Any) -> tuple[dict[str, Tensor], float]:
    total = torch.zeros(())
    torch.manual_seed(5)
    gradients(model, **changes).of_step(parts, sum(part.units for part in parts), total)
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}, total.item()


def expected(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_plain_step_is_the_loss_of_the_batch() -> None:
    model = Net()
    found, total = of_step(model, [Part(Mixed((X,)), Y, 8)])
    reference = Net()
    torch.manual_seed(5)
    loss = F.cross_entropy(reference(X), Y)
    assert total == pytest.approx(8 * loss.item())
    assert_equal_tensors(found, expected(reference, loss))


def test_r_drop_is_the_mean_of_two_passes_and_their_divergence() -> None:
    """arXiv:2106.14448, as its authors' code: ce = (ce1 + ce2) / 2, loss = ce + alpha * (KL(1, 2) + KL(2, 1)) / 2."""
    alpha, model, reference = 1.7, Net(), Net()
    found, _ = of_step(model, [Part(Mixed((X,)), Y, 8)], r_drop=alpha)
    torch.manual_seed(5)
    first, second = reference(X), reference(X)
    assert not torch.equal(first, second)
    p, q = first.log_softmax(dim=1), second.log_softmax(dim=1)
    kl = (F.kl_div(p, q, log_target=True, reduction="none") + F.kl_div(q, p, log_target=True, reduction="none")).sum(dim=1)
    wanted = expected(reference, (F.cross_entropy(first, Y) + F.cross_entropy(second, Y)) / 2 + alpha * kl.mean() / 2)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_r_drop_is_refused_for_a_head_without_a_divergence() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    head = replace(HEAD, divergence=None)
    with pytest.raises(ValueError, match="R-Drop needs a head with a divergence, but image-classification has none"):
        Gradients(Net(), head, TARGETS, PLAIN, autocast=nullcontext, scaler=scaler, r_drop=1.0)
    assert HEAD.divergence is of_classes


def test_adversarial_step_adds_the_gradients_of_both_passes() -> None:
    model, reference = Net(), Net()
    found, _ = of_step(model, [Part(Mixed((X,)), Y, 8)], adversary=Adversary(model.first, 0.5))
    torch.manual_seed(5)
    adversary = Adversary(reference.first, 0.5)
    with adversary.watched():
        F.cross_entropy(reference(X), Y).backward()
    with adversary.attacking():
        F.cross_entropy(reference(X), Y).backward()
    for name, value in reference.named_parameters():
        torch.testing.assert_close(found[name], value.grad)


def test_sam_takes_all_parts_of_a_step_uphill_together() -> None:
    model, reference = Net(), Net()
    for each in (model, reference):
        each.drop.p = 0.0
        each.norm.eval()  # statistics of a part are not those of the whole
    parts = [Part(Mixed((X[:5],)), Y[:5], 5), Part(Mixed((X[5:],)), Y[5:], 3)]
    found, total = of_step(model, parts, sam=SAM(list(model.parameters()), 0.4))
    before = F.cross_entropy(reference(X), Y)
    assert total == pytest.approx(8 * before.item(), rel=1e-5)
    before.backward()
    with SAM(list(reference.parameters()), 0.4).uphill():
        wanted = expected(reference, F.cross_entropy(reference(X), Y))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("which", ["r_drop", "sam", "adversary"])
def test_second_pass_does_not_count_a_batch_twice(which: str) -> None:
    once, twice = Net(), Net()
    of_step(once, [Part(Mixed((X,)), Y, 8)])
    second: dict[str, Any] = {
        "r_drop": 1.0,
        "sam": SAM(list(twice.parameters()), 0.1),
        "adversary": Adversary(twice.first, 0.1),
    }
    of_step(twice, [Part(Mixed((X,)), Y, 8)], batch_norms=[twice.norm], **{which: second[which]})
    torch.testing.assert_close(twice.norm.running_mean, once.norm.running_mean)
    uncounted = Net()
    second["sam"], second["adversary"] = SAM(list(uncounted.parameters()), 0.1), Adversary(uncounted.first, 0.1)
    of_step(uncounted, [Part(Mixed((X,)), Y, 8)], **{which: second[which]})
    assert not torch.allclose(uncounted.norm.running_mean, once.norm.running_mean)


def test_mixed_batch_has_the_loss_of_its_mixed_targets() -> None:
    model, reference = Net(), Net()
    partner = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    inputs = 0.7 * X + 0.3 * X[partner]
    found, _ = of_step(model, [Part(Mixed((inputs,), partner, 0.7), Y, 8)])
    soft = 0.7 * F.one_hot(Y, 3).float() + 0.3 * F.one_hot(Y[partner], 3).float()
    torch.manual_seed(5)
    wanted = expected(reference, F.cross_entropy(reference(inputs), soft))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


# --- in a training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"sam": 0.05},
        {"r_drop": 1.0, "knobs": {**KNOBS, "dropout": 0.3}},
        {"mixup": 0.4},
        {"cutmix": 0.4},
        {"erasing": 0.5},
        {"mixup": 0.4, "cutmix": 0.4, "erasing": 0.3, "micro_batch": 3},
        {"unfreeze": 0.5},
        {"batch_norm": "frozen"},
        {"schedule": "linear"},
        {"l2_sp": 1.0, "averaging": "ema", "sam": 0.02, "unfreeze": 0.4, "mixup": 0.2},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_method_trains_differently_repeats_and_goes_on_from_a_checkpoint(changes: Any, tmp_path: Any) -> None:
    settings = config(epochs=4, **changes)
    plain, _ = run(config(epochs=4, knobs=settings.knobs))
    wanted, _ = run(settings)
    assert [each.value for each in wanted.history] != [each.value for each in plain.history]
    assert wanted.history[-1].train_loss < wanted.history[0].train_loss

    def stop(report: Any) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, checkpoint=tmp_path, on_epoch=stop)
    result, _ = run(settings, checkpoint=tmp_path)
    assert [each.value for each in result.history] == [each.value for each in wanted.history]
    assert_equal_tensors(result.weights, wanted.weights)


def test_frozen_statistics_stay_as_pretrained_while_weights_train() -> None:
    before = state(build())
    result, _ = run(config(batch_norm="frozen"))
    statistics = [name for name in before if "running" in name]
    assert len(statistics) == 8
    assert all(torch.equal(result.weights[name], before[name]) for name in statistics)
    assert not torch.equal(result.weights["backbone.stem.norm.weight"], before["backbone.stem.norm.weight"])


def test_unfreezing_trains_the_head_alone_at_first() -> None:
    before, seen = state(build()), []
    result, model = run(config(epochs=4, unfreeze=0.5), on_epoch=lambda report: seen.append(report.epoch))
    assert seen == [1, 2, 3, 4]
    assert all(parameter.requires_grad for parameter in model.parameters())
    first, _ = run(config(epochs=1, unfreeze=1.0))
    for name, value in before.items():
        if name.startswith("backbone."):
            assert torch.equal(first.weights[name], value)
    assert not torch.equal(first.weights["head.1.weight"], before["head.1.weight"])
    assert not torch.equal(result.weights["backbone.stem.conv.weight"], before["backbone.stem.conv.weight"])


def test_best_weights_give_the_score_that_was_reported() -> None:
    result, _ = run(config(epochs=3, averaging="swa", swa_share=1.0, mixup=0.3))
    model = build()
    model.load_state_dict(result.weights)
    outputs = predict(model, split(VALIDATION), device=CPU, batch_size=64)
    assert result.best.value == pytest.approx(float(F.cross_entropy(outputs, encode(VALIDATION))), rel=1e-5)
