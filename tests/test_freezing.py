"""Stages must partition, depths must be possible, frozen modules are found, and groups agree with timm's."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from autoft import timm_models
from autoft.errors import BackboneError
from autoft.freezing import check_stages, frozen_modules, frozen_parameters, parameter_groups, stages_by_module
from autoft.specs import Stage


def net(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def linear() -> nn.Linear:
    return nn.Linear(2, 2)


# --- stages -----------------------------------------------------------------------------------------

LINEAR_STAGE = Stage("only", ("weight", "bias"))


def test_partition_passes() -> None:
    check_stages(linear(), (Stage("a", ("weight",)), Stage("b", ("bias",))))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "at least one stage, but got none"),
        ((Stage("a", ("weight",)),), "1 are in no stage, such as bias"),
        ((LINEAR_STAGE, Stage("b", ("gain",))), "1 are unknown to the module, such as gain"),
        ((LINEAR_STAGE, Stage("b", ("bias",))), "1 are in more than one stage, such as bias"),
        ((Stage("a", ("weight", "weight", "bias")),), "1 are in more than one stage, such as weight"),
    ],
)
def test_stages_that_are_no_partition_are_refused(stages: tuple[Stage, ...], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        check_stages(linear(), stages)


STAGES = (Stage("a", ("a.weight", "a.bias")), Stage("b", ("b.weight",)), Stage("c", ("c.weight",)))


def test_depth_counts_stages_from_the_input() -> None:
    assert frozen_parameters(STAGES, 0) == frozenset()
    assert frozen_parameters(STAGES, 2) == {"a.weight", "a.bias", "b.weight"}
    assert frozen_parameters(STAGES, 3) == {"a.weight", "a.bias", "b.weight", "c.weight"}


@pytest.mark.parametrize("depth", [-1, 4])
def test_impossible_depth_is_refused_with_rule_and_value(depth: int) -> None:
    with pytest.raises(BackboneError, match=f"`freeze_depth` must be between 0 and 3, but got {depth}"):
        frozen_parameters(STAGES, depth)


# --- frozen modules ---------------------------------------------------------------------------------


def test_wholly_frozen_module_is_held_with_all_its_descendants() -> None:
    module = net(stem=nn.Sequential(linear(), nn.Sequential(nn.Dropout(), linear())), top=linear())
    frozen = {name for name, _ in module.named_parameters() if name.startswith("stem")}
    assert set(frozen_modules(module, frozen)) == {"stem", "stem.0", "stem.1", "stem.1.0", "stem.1.1"}


def test_nothing_frozen_holds_nothing_even_where_the_first_module_has_no_parameters() -> None:
    module = net(drop=nn.Dropout(), stem=linear())
    assert frozen_modules(module, frozenset()) == ()


def test_everything_frozen_holds_the_root_too() -> None:
    module = net(stem=linear(), drop=nn.Dropout())
    assert frozen_modules(module, {name for name, _ in module.named_parameters()}) == ("", "stem", "drop")


def test_module_without_parameters_follows_the_sibling_before_it() -> None:
    module = net(a=linear(), drop_a=nn.Dropout(), b=linear(), drop_b=nn.Dropout())
    assert frozen_modules(module, {"a.weight", "a.bias"}) == ("a", "drop_a")


def test_leading_module_without_parameters_is_frozen_with_the_first_stage() -> None:
    module = net(norm=nn.BatchNorm2d(3, affine=False), a=linear(), b=linear())
    assert frozen_modules(module, {"a.weight", "a.bias"}) == ("norm", "a")


def test_mixed_module_trains_but_its_frozen_children_are_held() -> None:
    blocks = nn.Sequential(nn.Dropout(), linear(), nn.Dropout(), linear(), nn.Dropout())
    module = net(stem=linear(), blocks=blocks, drop=nn.Dropout(), top=linear())
    frozen = {"stem.weight", "stem.bias", "blocks.1.weight", "blocks.1.bias"}
    assert frozen_modules(module, frozen) == ("stem", "blocks.0", "blocks.1", "blocks.2")


def test_module_whose_own_parameters_are_mixed_trains() -> None:
    module = net(stem=linear(), norm=nn.BatchNorm1d(2), top=linear())
    assert frozen_modules(module, {"stem.weight", "stem.bias", "norm.weight"}) == ("stem",)


def test_batchnorm_without_affine_parameters_follows_its_convolution() -> None:
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))
    module = net(first=block, second=nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)))
    assert frozen_modules(module, {"first.0.weight", "first.0.bias"}) == ("first", "first.0", "first.1")


# --- parameter groups -------------------------------------------------------------------------------


def groups_of(
    module: nn.Module, stages: tuple[Stage, ...], head: nn.Module, **changes: object
) -> dict[str, dict[str, float]]:
    """Rate and decay by name."""
    settings = {
        "learning_rate": 1.0,
        "head_multiplier": 1.0,
        "layer_decay": 0.5,
        "weight_decay": 0.05,
        "no_weight_decay": (),
        **changes,
    }
    found = {}
    for group in parameter_groups(module, head, stages, **settings):  # type: ignore[arg-type]
        assert group["initial_lr"] == group["lr"]
        assert len(group["params"]) == len(group["names"])
        for name in group["names"]:
            assert name not in found
            found[name] = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
    return found


def test_rates_decay_from_the_head_to_the_input() -> None:
    module = net(a=linear(), b=linear())
    stages = (Stage("a", ("a.weight", "a.bias")), Stage("b", ("b.weight", "b.bias")))
    found = groups_of(module, stages, linear(), learning_rate=0.1, head_multiplier=10.0)
    assert found == {
        "a.weight": {"lr": pytest.approx(0.025), "weight_decay": 0.05},
        "a.bias": {"lr": pytest.approx(0.025), "weight_decay": 0.0},
        "b.weight": {"lr": pytest.approx(0.05), "weight_decay": 0.05},
        "b.bias": {"lr": pytest.approx(0.05), "weight_decay": 0.0},
        "head.weight": {"lr": pytest.approx(1.0), "weight_decay": 0.05},
        "head.bias": {"lr": pytest.approx(1.0), "weight_decay": 0.0},
    }


def test_frozen_parameters_are_in_no_group() -> None:
    module = net(a=linear(), b=linear())
    module.get_parameter("a.weight").requires_grad_(False)
    stages = (Stage("a", ("a.weight", "a.bias")), Stage("b", ("b.weight", "b.bias")))
    assert set(groups_of(module, stages, linear())) == {"a.bias", "b.weight", "b.bias", "head.weight", "head.bias"}


def test_named_parameters_are_not_decayed() -> None:
    found = groups_of(net(a=linear()), (Stage("a", ("a.weight", "a.bias")),), linear(), no_weight_decay={"a.weight"})
    assert [name for name, values in found.items() if values["weight_decay"]] == ["head.weight"]


# A classifier in a group of its own: then timm's layers are our stages and the head.
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "swin_tiny_patch4_window7_224"])
def test_groups_agree_with_timms_layer_decay(name: str) -> None:
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=7)
        module = timm.create_model(name, num_classes=0)
    exempt = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    names = {id(parameter): parameter_name for parameter_name, parameter in whole.named_parameters()}
    theirs = {
        names[id(parameter)]: {"lr": group["lr_scale"], "weight_decay": group["weight_decay"]}
        for group in param_groups_layer_decay(whole, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=exempt)
        for parameter in group["params"]
    }
    plain = {
        names[id(parameter)]: group["weight_decay"]
        for group in param_groups_weight_decay(whole, weight_decay=0.05, no_weight_decay_list=exempt)
        for parameter in group["params"]
    }
    ours = groups_of(module, timm_models.stages(module), nn.Identity(), no_weight_decay=timm_models.no_weight_decay(module))
    assert set(ours) == {parameter_name for parameter_name, _ in module.named_parameters()}
    assert len({values["lr"] for values in ours.values()}) > 5, "the comparison must see different rates"
    assert ours == {parameter_name: theirs[parameter_name] for parameter_name in ours}
    assert {n: values["weight_decay"] for n, values in ours.items()} == {n: plain[n] for n in ours}


# --- stages by the tree of modules ------------------------------------------------------------------


class Tower(nn.Sequential):
    """A type of its own: a whole, unless it is opened."""


def test_stage_is_the_outermost_module_that_does_more_than_hold_others() -> None:
    module = net(stem=linear(), blocks=nn.Sequential(net(one=linear()), net(two=linear())), last=nn.ModuleList([linear()]))
    assert [stage.name for stage in stages_by_module(module)] == ["stem", "blocks.0", "blocks.1", "last.0"]
    check_stages(module, stages_by_module(module))


def test_norms_and_loose_parameters_belong_to_the_stage_before_them() -> None:
    module = net(stem=linear(), norm=nn.LayerNorm(2), block=linear(), end=nn.BatchNorm1d(2))
    module.position = nn.Parameter(torch.zeros(1, 3, 2))  # named first: parameters of a module come before its children's
    found = stages_by_module(module)
    assert [stage.name for stage in found] == ["stem", "block"]
    assert found[0].parameters == ("position", "stem.weight", "stem.bias", "norm.weight", "norm.bias")
    check_stages(module, found)


def test_type_that_only_holds_others_is_opened_when_named() -> None:
    module = net(tower=Tower(linear(), linear()))
    assert [stage.name for stage in stages_by_module(module)] == ["tower"]
    assert [stage.name for stage in stages_by_module(module, open=(Tower,))] == ["tower.0", "tower.1"]
