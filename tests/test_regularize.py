"""L2-SP, SAM and adversarial perturbation against their formulas, written out by hand or left to autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_training import CPU, build, config, run, state

from autoft.regularize import L2SP, SAM, Adversary, still
from autoft.train import make_optimizer

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def group(model: nn.Module, rate: float) -> dict[str, object]:
    named = list(model.named_parameters())
    return {"params": [value for _, value in named], "names": [name for name, _ in named], "lr": rate, "initial_lr": rate}


# --- L2-SP ------------------------------------------------------------------------------------------


def test_pull_is_a_step_along_the_gradient_of_the_papers_penalty() -> None:
    """arXiv:1802.01483, equation 3: strength / 2 * |w - w0|^2, whose gradient autograd takes."""
    rate, strength = 0.1, 0.7
    model, reference = small(), small()
    start = [parameter.detach().clone() for parameter in reference.parameters()]
    ours, theirs = torch.optim.SGD([group(model, rate)]), torch.optim.SGD(reference.parameters(), lr=rate)
    pull = L2SP(ours.param_groups, strength)
    for _ in range(5):
        for each, optimizer in ((model, ours), (reference, theirs)):
            optimizer.zero_grad()
            F.cross_entropy(each(X), Y).backward()
            optimizer.step()
        pull.pull()
        theirs.zero_grad()
        penalty = sum(((w - w0) ** 2).sum() for w, w0 in zip(reference.parameters(), start, strict=True))
        (strength / 2 * penalty).backward()
        theirs.step()
    for found, wanted, w0 in zip(model.parameters(), reference.parameters(), start, strict=True):
        torch.testing.assert_close(found, wanted)
        assert not torch.allclose(found, w0)


def test_pull_moves_each_weight_by_its_share_of_the_way_back() -> None:
    model = small()
    groups = [group(model, 0.5)]
    pull = L2SP(groups, 0.4)
    start = state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    pull.pull()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, start[name] + (1.0 - 0.5 * 0.4))


def test_pull_never_steps_over_the_start() -> None:
    model = small()
    pull = L2SP([group(model, 10.0)], 100.0)
    start = state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    pull.pull()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, start[name])


def test_strong_pull_keeps_a_training_near_the_pretrained_weights_and_the_head_free() -> None:
    model = build()
    before = state(model)
    trained = {
        part: [f"{part}.{name}" for name, _ in getattr(model, part).named_parameters()] for part in ("backbone", "head")
    }

    def moved(strength: float, part: str) -> float:
        weights = run(config(l2_sp=strength, epochs=3))[0].weights
        return sum(float((weights[name] - before[name]).norm()) for name in trained[part])

    assert moved(300.0, "backbone") < 0.3 * moved(0.0, "backbone")
    assert moved(300.0, "head") > 0.5 * moved(0.0, "head")


def test_groups_of_the_head_are_left_out() -> None:
    model = build()
    optimizer = make_optimizer(model, config(), frozenset(), CPU)
    pull = L2SP(optimizer.param_groups, 1.0)
    head = {id(parameter) for parameter in model.head.parameters()}
    pulled = {id(parameter) for each in pull._groups for parameter in each["params"]}
    assert pulled
    assert not pulled & head


# --- SAM --------------------------------------------------------------------------------------------


def test_gradient_is_taken_at_the_point_that_the_paper_says() -> None:
    """arXiv:2010.01412, equation 2: the gradient at w + rho * g / |g|, at which w stays."""
    rho = 0.3
    model, reference = small(), small()
    F.cross_entropy(reference(X), Y).backward()
    gradients = [parameter.grad for parameter in reference.parameters()]
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients if gradient is not None))
    with torch.no_grad():
        for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
            parameter += rho * gradient / norm
    reference.zero_grad()
    F.cross_entropy(reference(X), Y).backward()

    before = state(model)
    F.cross_entropy(model(X), Y).backward()
    with SAM(list(model.parameters()), rho).uphill():
        assert all(parameter.grad is None for parameter in model.parameters())
        F.cross_entropy(model(X), Y).backward()
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # to the last bit: it must not drift


def test_weights_come_back_also_when_a_pass_fails() -> None:
    model = small()
    before = state(model)
    F.cross_entropy(model(X), Y).backward()

    def fail() -> None:
        with SAM(list(model.parameters()), 1.0).uphill():
            assert not torch.equal(next(model.parameters()), before["0.weight"])
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert torch.equal(model.state_dict()["0.weight"], before["0.weight"])


def test_parameters_without_a_gradient_stay_out() -> None:
    model = small()
    model[0].requires_grad_(False)
    F.cross_entropy(model(X), Y).backward()
    with SAM(list(model.parameters()), 1.0).uphill():
        F.cross_entropy(model(X), Y).backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None


# --- adversarial ------------------------------------------------------------------------------------


class Words(nn.Module):
    """Embeds tokens and takes a nonlinear mean of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.of(self.embed(tokens))

    def of(self, embedded: Tensor) -> Tensor:
        return self.out(torch.tanh(embedded).mean(dim=1))


TOKENS = torch.randint(0, 20, (12, 7), generator=torch.Generator().manual_seed(2))


def test_perturbation_is_that_of_the_paper_for_each_text() -> None:
    """arXiv:1605.07725, equation 6: r = epsilon * g / |g|, g the gradient at the embedded text; and the loss there."""
    size = 0.8
    model, reference = Words(), Words()
    embedded = reference.embed(TOKENS).detach().requires_grad_()
    F.cross_entropy(reference.of(embedded), Y).backward()
    assert embedded.grad is not None
    unit = reference.embed.weight.norm(dim=1).mean()
    added = torch.stack([size * unit * one / one.norm() for one in embedded.grad]).detach()
    reference.zero_grad()
    wanted = F.cross_entropy(reference.of(reference.embed(TOKENS) + added), Y)
    wanted.backward()

    adversary = Adversary(model.embed, size)
    with adversary.watched():
        plain = F.cross_entropy(model(TOKENS), Y)
        plain.backward()
    model.zero_grad()
    with adversary.attacking():
        found = F.cross_entropy(model(TOKENS), Y)
        found.backward()
    torch.testing.assert_close(found, wanted)
    assert found > plain
    torch.testing.assert_close(model.embed.weight.grad, reference.embed.weight.grad)


def test_watching_changes_neither_outputs_nor_gradients() -> None:
    model, watched = Words(), Words()
    F.cross_entropy(model(TOKENS), Y).backward()
    with Adversary(watched.embed, 1.0).watched():
        F.cross_entropy(watched(TOKENS), Y).backward()
    for found, wanted in zip(watched.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=0)


def test_attack_works_on_frozen_embeddings() -> None:
    model = Words()
    model.embed.requires_grad_(False)
    adversary = Adversary(model.embed, 1.0)
    with adversary.watched():
        plain = F.cross_entropy(model(TOKENS), Y)
        plain.backward()
    with adversary.attacking():
        assert F.cross_entropy(model(TOKENS), Y) > plain
    assert model.embed.weight.grad is None


def test_attack_needs_something_watched_before() -> None:
    with pytest.raises(RuntimeError, match="must be watched before"), Adversary(Words().embed, 1.0).attacking():
        pass


# --- running statistics -----------------------------------------------------------------------------


def test_further_passes_leave_running_statistics_as_they_are() -> None:
    norm = nn.BatchNorm1d(5)
    norm(X)
    before = copy.deepcopy(norm.state_dict())
    with still([norm]):
        norm(X * 3 + 1)
    assert torch.equal(norm.running_mean, before["running_mean"])
    assert torch.equal(norm.running_var, before["running_var"])
    norm(X * 3 + 1)
    assert not torch.equal(norm.running_mean, before["running_mean"])
