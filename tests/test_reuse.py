"""Stored activations: training from them gives the losses that the whole model gives, and a kill leaves no half store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_transformers import write_tiny
from toy_training import (
    CONVNET,
    CPU,
    HEAD,
    KNOBS,
    MLP,
    TRAIN,
    VALIDATION,
    build,
    config,
    encode,
    objective,
    split,
)

from autoft import prefix_data, timm_models
from autoft import reuse as reuse_module
from autoft.builtin import transformers as transformers_family
from autoft.loading import FixedData, load_split
from autoft.model import FineTuneModel, assemble
from autoft.prefix_store import DISK, PrefixStore
from autoft.reuse import Reuse, ReusePlanner
from autoft.specs import Backbone, BackboneRequest, Sample
from autoft.testing import toy
from autoft.train import FitResult, Objective, TrainConfig, fit
from autoft.worker import Job, Worker


def planning(folder: Path | None, *, memory: int = 1 << 30, disk: int = DISK) -> ReusePlanner:
    return ReusePlanner(PrefixStore(folder, memory=memory, disk=disk))


def losses(result: FitResult) -> list[float]:
    return [number for report in result.history for number in (report.train_loss, report.metrics["log_loss"])]


def trained(
    settings: TrainConfig, planner: ReusePlanner | None, backbone: Backbone = CONVNET, policy: str = "none"
) -> tuple[FitResult, str]:
    model = build(backbone, settings.knobs, settings.seed)
    data = split(TRAIN, backbone, policy), split(VALIDATION, backbone)
    reuse: Reuse | None = None
    told = ""
    if planner is not None:
        reuse, told = planner.plan(model, backbone, settings, *data, device=CPU, force=True)
        assert reuse is not None, told
        data = reuse.train, reuse.validation  # type: ignore[assignment]
    return fit(model, *data, objective(), settings, device=CPU, run=reuse.run if reuse else None), told


@pytest.mark.parametrize("views", [None, 2])
@pytest.mark.parametrize("policy", ["none", "light"])
@pytest.mark.parametrize("backbone", [CONVNET, MLP], ids=["convnet", "mlp"])
@pytest.mark.parametrize("folder", [True, False], ids=["file", "memory"])
def test_losses_are_those_of_the_whole_model(
    tmp_path: Path, folder: bool, backbone: Backbone, policy: str, views: int | None
) -> None:
    planner = planning(tmp_path if folder else None)
    settings = config(freeze_depth=2, views=views, epochs=3)
    wanted, _ = trained(settings, None, backbone, policy)
    found, _ = trained(settings, planner, backbone, policy)
    assert losses(found) == pytest.approx(losses(wanted), abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"sam": 0.05},
        {"r_drop": 1.0},
        {"l2_sp": 1.0},
        {"averaging": "ema"},
        {"averaging": "swa", "swa_share": 1.0},
        {"unfreeze": 0.7},
        {"batch_norm": "frozen"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_methods_train_alike_from_stored_outputs(changes: dict[str, Any]) -> None:
    settings = config(freeze_depth=2, epochs=3, **changes)
    wanted, _ = trained(settings, None, policy="light")
    found, _ = trained(settings, planning(None), policy="light")
    plain, _ = trained(config(freeze_depth=2, epochs=3), None, policy="light")
    assert losses(found) == pytest.approx(losses(wanted), abs=1e-5)
    assert losses(plain) != pytest.approx(losses(wanted), abs=1e-5)


@pytest.mark.parametrize(
    "changes", [{"mixup": 0.2}, {"cutmix": 0.2}, {"erasing": 0.2}], ids=lambda changes: next(iter(changes))
)
def test_reuse_is_declined_where_steps_change_the_inputs(changes: dict[str, Any]) -> None:
    settings = config(freeze_depth=2, **changes)
    planner = planning(None)
    reuse, told = planner.plan(build(), CONVNET, settings, split(TRAIN), split(VALIDATION), device=CPU, force=True)
    assert reuse is None
    assert told.startswith("declined: mixing, erasing or perturbing changes what frozen stages are given")


@pytest.mark.parametrize("policy", ["none", "light"])
def test_reuse_is_declined_where_targets_move_with_augmented_images(policy: str) -> None:
    whole = replace(CONVNET, preprocessing=replace(CONVNET.preprocessing, resize=CONVNET.image_size))  # type: ignore[type-var]
    train = FixedData(TRAIN, encode(TRAIN), whole.preprocessing, policy=policy, move=lambda target, warp: target)
    planner = planning(None)
    reuse, told = planner.plan(
        build(), whole, config(freeze_depth=2), train, split(VALIDATION, whole), device=CPU, force=True
    )
    assert (reuse is None) == (policy == "light")
    assert told.startswith("declined: targets move") == (policy == "light")


def test_views_repeat_what_was_drawn_and_otherwise_it_is_drawn_anew() -> None:
    one, fresh = (trained(config(freeze_depth=2, views=views), None, policy="light")[0] for views in (1, None))
    assert losses(one)[:2] == losses(fresh)[:2]
    assert losses(one)[2] != losses(fresh)[2]


def test_texts_train_alike(tmp_path: Path) -> None:
    assert_trains_alike(toy.resolve(BackboneRequest("text", "none")), toy.toy_texts(per_class=12), tmp_path)


@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_models_of_transformers_train_alike(architecture: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / architecture, architecture)
    backbone = transformers_family.resolve(BackboneRequest(str(folder)))
    samples = toy.toy_texts(per_class=6) if backbone.modality == "text" else toy.toy_samples(per_class=6)
    assert_trains_alike(backbone, samples, tmp_path / "prefix")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 32}),
        ("resnet10t", {}),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}),
    ],
)
def test_models_of_timm_train_alike(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    import timm

    backbone = replace(
        timm_models.resolve(BackboneRequest(name, "none", image_size=32)),
        build=lambda: timm.create_model(name, num_classes=0, **settings),
    )
    assert_trains_alike(backbone, toy.toy_samples(per_class=6), tmp_path / "prefix")


def assert_trains_alike(backbone: Backbone, samples: Sequence[Sample], folder: Path) -> None:
    """The same losses with and without reuse, with half of the stages frozen."""
    targets = HEAD.describe([sample.target for sample in samples])
    parts = samples[::2], samples[1::2]
    found = []
    for planner in (None, planning(folder, memory=0)):
        model = assemble(backbone, HEAD, targets, {**KNOBS, "dropout": 0.0}, seed=0)
        settings = config(freeze_depth=len(model.stages) // 2, epochs=2, learning_rate=1e-3)
        data: Any = [
            load_split(part, HEAD.encode([sample.target for sample in part], targets), backbone.preprocessing, policy=policy)
            for part, policy in zip(parts, (backbone.preprocessing.policies[:2][-1], "none"), strict=True)
        ]
        run = None
        if planner is not None:
            reuse, told = planner.plan(model, backbone, settings, *data, device=CPU, force=True)
            assert reuse is not None, told
            data, run = [reuse.train, reuse.validation], reuse.run
        aim = Objective(HEAD, targets, "log_loss")
        found.append(losses(fit(model, *data, aim, settings, device=CPU, run=run)))
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_a_second_trial_finds_the_store(tmp_path: Path) -> None:
    settings = config(freeze_depth=2, epochs=2)
    trained(settings, planning(tmp_path, memory=0))
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.bin")}
    trained(replace(settings, learning_rate=1e-2), planning(tmp_path, memory=0))
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.bin")} == before
    assert len(before) == 2


def test_other_weights_find_no_store(tmp_path: Path) -> None:
    settings = config(freeze_depth=2, epochs=2)
    for seed in (0, 1):  # random weights
        trained(replace(settings, seed=seed), planning(tmp_path, memory=0))
    assert len(list(tmp_path.glob("*.bin"))) == 4


def test_a_deeper_store_starts_from_a_shallower_one(tmp_path: Path) -> None:
    planner = planning(tmp_path)
    trained(config(freeze_depth=1), planner)
    wanted, _ = trained(config(freeze_depth=3), None)
    model = build()
    reuse, _ = planner.plan(model, CONVNET, config(freeze_depth=3), split(TRAIN), split(VALIDATION), device=CPU, force=True)
    assert reuse is not None
    with torch.no_grad():  # proof that the images are not read: the first stage would now give nonsense
        seen: list[int] = []
        model.backbone.get_submodule("stem.conv").register_forward_hook(lambda *_: seen.append(1))
    found = fit(model, reuse.train, reuse.validation, objective(), config(freeze_depth=3), device=CPU, run=reuse.run)
    assert not seen
    assert losses(found) == pytest.approx(losses(wanted), abs=1e-5)


def test_what_has_no_description_is_made_again(tmp_path: Path) -> None:
    settings = config(freeze_depth=2, epochs=2)
    wanted, _ = trained(settings, planning(tmp_path, memory=0))
    for file in tmp_path.glob("*.json"):
        file.unlink()
        file.with_suffix(".bin").write_bytes(b"half")
    found, _ = trained(settings, planning(tmp_path, memory=0))
    assert losses(found) == losses(wanted)


@pytest.mark.parametrize("memory", [0, 1 << 30], ids=["mapped", "in memory"])
@pytest.mark.parametrize("damage", ["half", "flipped", "description"])
def test_a_damaged_store_is_told_and_made_again(
    damage: str, memory: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(freeze_depth=2, epochs=2)
    wanted, _ = trained(settings, planning(tmp_path, memory=memory))
    for file in tmp_path.glob("*.bin"):
        content = file.read_bytes()
        if damage == "description":
            file.with_suffix(".json").write_text("{")
        else:
            file.write_bytes(b"half" if damage == "half" else content[:40] + bytes([content[40] ^ 64]) + content[41:])
    found, _ = trained(settings, planning(tmp_path, memory=memory))
    assert losses(found) == losses(wanted)
    assert "are damaged and are made again" in caplog.text


def test_the_folder_stays_within_its_bytes(tmp_path: Path) -> None:
    settings = config(freeze_depth=2, epochs=1)
    trained(settings, planning(tmp_path, memory=0))
    size = sum(file.stat().st_size for file in tmp_path.glob("*.bin"))
    for seed in (1, 2):
        trained(replace(settings, seed=seed), planning(tmp_path, memory=0, disk=size))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.bin")) <= size
    assert len(list(tmp_path.glob("*.bin"))) == len(list(tmp_path.glob("*.json"))) >= 1


@pytest.mark.parametrize(("depth", "memory", "why"), [(0, 1 << 30, "nothing is frozen"), (2, 1000, "more than")])
def test_reuse_is_declined_with_a_reason(depth: int, memory: int, why: str) -> None:
    planner = planning(None, memory=memory)
    reuse, told = planner.plan(
        build(), CONVNET, config(freeze_depth=depth), split(TRAIN), split(VALIDATION), device=CPU, force=True
    )
    assert reuse is None
    assert why in told


@pytest.mark.parametrize(("operations", "used"), [((100, 50, 10), True), ((100, 90, 10), False)])
def test_the_worker_reuses_where_a_gain_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: tuple[int, int, int], used: bool
) -> None:
    monkeypatch.setattr("autoft.reuse._measure", lambda *_: operations)
    splits = {"train": (TRAIN, encode(TRAIN)), "validation": (VALIDATION, encode(VALIDATION))}
    values = {}
    for reuse in (True, False):
        worker = Worker(splits, objective(), device=CPU, memory=1 << 30, prefix=tmp_path / "prefix", reuse=reuse)
        outcome = worker.run(Job(CONVNET, config(freeze_depth=2), "none", tmp_path / str(reuse)))
        assert outcome.state == "complete", outcome.failure
        assert outcome.best is not None
        values[reuse] = outcome.best.value
        assert outcome.reuse.startswith("from stage1" if used else "declined: predicted gain") or not reuse
    assert values[True] == pytest.approx(values[False], abs=1e-5)
    assert (tmp_path / "prefix").exists() == used


def test_samples_that_are_drawn_again_and_augmented_are_not_stored() -> None:
    planner = planning(None)
    told = {
        (policy, imbalance): planner.plan(
            build(),
            CONVNET,
            config(freeze_depth=3, knobs={**KNOBS, "dropout": 0.0, "imbalance": imbalance}),
            split(TRAIN, CONVNET, policy),
            split(VALIDATION),
            device=CPU,
            force=True,
            objective=objective(),
        )[1]
        for policy in ("none", "light")
        for imbalance in ("none", "resample")
    }
    assert {case: words.startswith("declined: what is drawn again") for case, words in told.items()} == {
        ("none", "none"): False,
        ("none", "resample"): False,
        ("light", "none"): False,
        ("light", "resample"): True,
    }


def test_deeper_cuts_predict_larger_gains(tmp_path: Path) -> None:
    planner = planning(None)
    told = [
        planner.plan(build(), CONVNET, config(freeze_depth=depth), split(TRAIN), split(VALIDATION), device=CPU)[1]
        for depth in range(1, 5)
    ]
    gains = [float(words.rpartition(" ")[2]) for words in told]
    assert gains == sorted(gains)
    assert gains[0] < gains[-1]


def test_activations_are_kept_in_the_dtype_of_training(tmp_path: Path) -> None:
    settings = config(freeze_depth=2, epochs=2, precision="bf16")
    wanted, _ = trained(settings, None, MLP)
    found, _ = trained(settings, planning(tmp_path, memory=0), MLP)
    assert losses(found) == pytest.approx(losses(wanted), abs=1e-3)  # batches of another size round elsewhere


LOWER = config(freeze_depth=2, epochs=2, precision="bf16")


def planned_lower(planner: ReusePlanner, model: FineTuneModel, **arguments: Any) -> tuple[Reuse | None, str]:
    data = split(TRAIN, MLP), split(VALIDATION, MLP)
    return planner.plan(model, MLP, LOWER, *data, device=CPU, force=True, **arguments)


def damaged(monkeypatch: pytest.MonkeyPatch, *formats: torch.dtype) -> None:
    """Let what is recorded in some formats be a tenth too large."""
    real = prefix_data.record

    def record(*arguments: Any) -> torch.Tensor:
        found = real(*arguments)
        return found * 1.1 if found.dtype in formats else found

    monkeypatch.setattr(prefix_data, "record", record)


def test_a_store_in_the_format_of_training_is_judged_harmless() -> None:
    planner = planning(None)
    reuse, told = planned_lower(planner, build(MLP), objective=objective())
    assert reuse is not None
    assert "float32" not in told
    next(iter(reuse.train.batches([np.arange(2)], device=CPU)))
    assert {kept.dtype for kept in planner._store._held.values()} == {torch.bfloat16}


@pytest.mark.parametrize("cause", ["outputs", "metric"])
def test_a_store_that_moves_outputs_or_metric_is_made_in_float32(monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    if cause == "outputs":
        damaged(monkeypatch, torch.bfloat16)
    else:
        monkeypatch.setattr(reuse_module, "METRIC_TOLERANCE", -1.0)
    planner, model = planning(None), build(MLP)
    reuse, told = planned_lower(planner, model, objective=objective())
    assert reuse is not None
    assert f"stored in float32: {'outputs differ' if cause == 'outputs' else 'log_loss is'}" in told
    found = fit(model, reuse.train, reuse.validation, objective(), LOWER, device=CPU, run=reuse.run)
    assert [kept.dtype for kept in planner._store._held.values()].count(
        torch.float32
    ) == 2  # what was judged lies beside them
    wanted, _ = trained(LOWER, None, MLP)
    assert losses(found) == pytest.approx(losses(wanted), abs=0.02)


def test_reuse_is_declined_where_float32_does_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    damaged(monkeypatch, torch.bfloat16, torch.float32)
    reuse, told = planned_lower(planning(None), build(MLP), objective=objective())
    assert reuse is None
    assert "and in float32: outputs differ" in told


def test_training_in_float32_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    damaged(monkeypatch, torch.bfloat16)
    monkeypatch.setattr(reuse_module, "METRIC_TOLERANCE", -1.0)
    _, told = trained(config(freeze_depth=2, epochs=1), planning(None), MLP)
    assert "float32" not in told


def stops(questions: list[bool]) -> bool:
    """Say yes when no question is left."""
    return questions.pop() if questions else True


def test_an_interrupted_trial_goes_on_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.reuse._measure", lambda *_: (100, 50, 10))
    splits = {"train": (TRAIN, encode(TRAIN)), "validation": (VALIDATION, encode(VALIDATION))}
    outcomes = []
    for name, asked in (("whole", 1000), ("interrupted", 8)):
        worker = Worker(splits, objective(), device=CPU, memory=1 << 30, prefix=tmp_path / f"prefix-{name}")
        job = Job(CONVNET, config(freeze_depth=2), "light", tmp_path / name)
        questions = [False] * asked
        outcome = worker.run(job, should_stop=partial(stops, questions))
        outcomes.append(outcome if outcome.state == "complete" else worker.run(job))
    assert [outcome.state for outcome in outcomes] == ["complete"] * 2
    assert outcomes[0].best is not None
    assert outcomes[1].best is not None
    assert outcomes[0].best.metrics == outcomes[1].best.metrics
    assert all(outcome.reuse.startswith("from stage1") for outcome in outcomes)
