"""What happens around a backbone: the checks pass the toys, and catch networks, what cannot travel, and other pixels."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from conftest import InstallPlugin
from torch import Tensor, nn

from autoft.discovery import discover
from autoft.images import ImagePreprocessing
from autoft.specs import Backbone, BackboneRequest
from autoft.testing import process_checks, toy
from autoft.testing.kit import CheckFailed, CheckWarning

CONVNET: Backbone = toy.resolve(BackboneRequest("convnet", "none"))
TEXT: Backbone = toy.resolve(BackboneRequest("text", "none"))


def building(before: Callable[[], object]) -> Backbone:
    def build() -> nn.Module:
        before()
        return CONVNET.build()

    return replace(CONVNET, build=build)


def reading(kind: type[ImagePreprocessing]) -> Backbone:
    given = {field.name: getattr(CONVNET.preprocessing, field.name) for field in fields(ImagePreprocessing)}
    return replace(CONVNET, preprocessing=kind(**given))


# --- network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [CONVNET, TEXT], ids=lambda backbone: backbone.name)
def test_toys_need_no_network(backbone: Backbone) -> None:
    process_checks.check_no_network(backbone)


def test_connection_is_caught_and_refused() -> None:
    calling = building(lambda: socket.create_connection(("192.0.2.1", 443), timeout=0.1))
    with pytest.raises(CheckFailed, match=r"must not use the network, but connects to .*192\.0\.2\.1.*, and fails without"):
        process_checks.check_no_network(calling)


def test_connection_whose_failure_is_swallowed_is_caught() -> None:
    def quietly() -> None:
        try:
            socket.getaddrinfo("models.invalid", 443)
        except OSError:
            return

    with pytest.raises(CheckFailed, match=r"but connects to \('models\.invalid', 443\)"):
        process_checks.check_no_network(building(quietly))


def test_network_is_free_again_afterwards() -> None:
    process_checks.check_no_network(CONVNET)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        socket.create_connection(listener.getsockname(), timeout=5).close()


def test_failure_without_a_connection_is_told_as_it_is() -> None:
    def fail() -> None:
        raise KeyError("other")

    with pytest.raises(KeyError, match="other"):
        process_checks.check_no_network(building(fail))


# --- processes --------------------------------------------------------------------------------------


def test_preprocessing_that_cannot_be_pickled_is_caught() -> None:
    class Local(ImagePreprocessing):
        pass

    with pytest.raises(CheckFailed, match="the preprocessing must survive pickling, as it travels to workers, but does not"):
        process_checks.check_worker(reading(Local))


class Forgetful(ImagePreprocessing):
    def __reduce__(self) -> Any:
        return Forgetful, ((8, 8), 8, self.interpolation, self.mean, self.std)


def test_preprocessing_that_comes_back_as_another_is_caught() -> None:
    with pytest.raises(CheckFailed, match="must come back from pickling as it was, but is another"):
        process_checks.check_worker(reading(Forgetful))


SOURCE = """
    import os
    from dataclasses import replace
    from autoft import hookimpl
    from autoft.specs import BackboneFamily
    from autoft.testing import toy

    ME = os.getpid()

    def resolve(request):
        backbone = toy.resolve(request)
        return replace(backbone, name="odd/" + request.model{change})

    @hookimpl
    def autoft_backbones():
        return [BackboneFamily("odd", "image", resolve, lambda: ("convnet",), lambda modality, limit: ())]
"""


def installed(install_plugin: InstallPlugin, change: str) -> Backbone:
    install_plugin("odd", SOURCE.format(change=change))
    return discover(allow=["odd"]).resolve_backbone("odd/convnet", weights="none")


def test_worker_makes_the_same_model_by_name(install_plugin: InstallPlugin) -> None:
    process_checks.check_worker(installed(install_plugin, ""))


def test_model_that_depends_on_the_process_is_caught(install_plugin: InstallPlugin) -> None:
    change = ", stages=lambda module: tuple(replace(s, name=f'{s.name}-{os.getpid()}') for s in backbone.stages(module))"
    with pytest.raises(CheckFailed, match="a worker must make the same stages as this process, but makes"):
        process_checks.check_worker(installed(install_plugin, change))


def test_worker_that_cannot_make_it_says_why(install_plugin: InstallPlugin) -> None:
    backbone = installed(install_plugin, "")
    assert backbone.request is not None
    lost = replace(backbone, request=replace(backbone.request, model="gone"))
    with pytest.raises(CheckFailed, match="a worker must make it by its name, but cannot: toy has no model 'gone'"):
        process_checks.check_worker(lost)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("answer = 42\n", None),
        (
            "import time\nimport sklearn\ntime.sleep(1.1)\n",
            r"should take less than 1 s, .*, but takes \d+\.\d s, with sklearn",
        ),
    ],
    ids=["fast", "slow"],
)
def test_slow_import_is_a_warning(source: str, expected: str | None, install_plugin: InstallPlugin) -> None:
    install_plugin("slowpoke", source)
    if expected is None:
        process_checks.check_import("slowpoke")
        return
    with pytest.raises(CheckWarning, match=expected):
        process_checks.check_import("slowpoke")


def test_import_that_fails_is_a_failure(install_plugin: InstallPlugin) -> None:
    install_plugin("torn", "raise SystemExit('no licence')\n")
    with pytest.raises(CheckFailed, match="torn must be importable, but is not: SystemExit: no licence"):
        process_checks.check_import("torn")


# --- images -----------------------------------------------------------------------------------------


def test_toys_images_are_equal_in_training_and_bundle() -> None:
    process_checks.check_image_inputs(CONVNET)
    process_checks.check_augmentation(CONVNET)


class OtherScale(ImagePreprocessing):
    def inputs(self, batch: Tensor) -> tuple[Tensor, ...]:
        return (super().inputs(batch)[0] * 1.01,)


class Tuples(ImagePreprocessing):
    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "size": tuple(self.size)}


class Arrays(ImagePreprocessing):
    calls = 0

    def to_dict(self) -> dict[str, Any]:
        Arrays.calls += 1
        return super().to_dict() | ({"note": torch.zeros(3)} if Arrays.calls > 1 else {})  # the first is checked when made


class Scriptless(ImagePreprocessing):
    @property
    def runtime(self) -> Any:
        return TEXT.preprocessing.runtime


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OtherScale, r"must make the same inputs of an image, but differ by \d"),
        (Tuples, "must be the same after a way through JSON, but is not"),
        (Arrays, "`to_dict` must be JSON, but is not"),
        (Scriptless, "but lacks read_image, resize_and_crop"),
    ],
)
def test_images_that_the_bundle_sees_otherwise_are_caught(kind: type[ImagePreprocessing], message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        process_checks.check_image_inputs(reading(kind))


class Nameless(ImagePreprocessing):
    @property
    def policies(self) -> tuple[str, ...]:
        return ("wild",)


class Growing(ImagePreprocessing):
    def augment(self, item: Tensor, policy: str, rng: Any) -> Tensor:
        return item


class Unseeded(ImagePreprocessing):
    def augment(self, item: Tensor, policy: str, rng: Any) -> Tensor:
        return torch.randint(0, 255, (3, *self.size), dtype=torch.uint8)


class Painting(ImagePreprocessing):
    def augment(self, item: Tensor, policy: str, rng: Any) -> Tensor:
        found = super().augment(item, policy, rng).clone()
        item[:, :, 0] = 7
        return found


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Nameless, r"the first augmentation policy must be 'none', but there are \('wild',\)"),
        (Growing, r"augmentation 'none' must give \(3, 16, 16\) torch\.uint8, as evaluation, but gives \(3, 18, 18\)"),
        (Unseeded, "'none' must give the same for the same random numbers, but does not"),
        (Painting, "must not change the item that it is given, but does"),
    ],
)
def test_augmentation_that_breaks_its_promise_is_caught(kind: type[ImagePreprocessing], message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        process_checks.check_augmentation(reading(kind))
