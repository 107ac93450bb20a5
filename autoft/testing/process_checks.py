"""The conformance checks of what happens around a backbone: no network, other processes, images in the bundle's script."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import first_line
from autoft.specs import Backbone
from autoft.testing.kit import CheckFailed, CheckWarning, make_inputs, make_sources

if TYPE_CHECKING:
    import numpy as np

SLOW_IMPORT = 1.0  # seconds; every command waits for all plugins
HEAVY = ("torch", "torchvision", "timm", "transformers", "sklearn", "onnxruntime", "onnx", "datasets")
_WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
# As `processes.py` starts workers: autoft and the plugin may be found only through this process's `sys.path`.
_BOOT = (
    "import json, sys; given = json.loads(sys.stdin.readline()); sys.path[:] = given['path']; "
    "from autoft.testing.process_checks import {function}; {function}(given)"
)


# --- network ----------------------------------------------------------------------------------------


class _Watch(threading.local):
    """Whether this thread may use the network, and what it tried while it might not."""

    tried: list[str] | None = None


_watch = _Watch()


@contextlib.contextmanager
def no_network() -> Iterator[list[str]]:
    """Refuse connections that this thread's Python code opens, and yield the list of those that were tried."""
    if not getattr(no_network, "installed", False):
        sys.addaudithook(_refuse)  # can never be removed, so it is added once, and does nothing outside of this context
        no_network.installed = True  # type: ignore[attr-defined]
    before, _watch.tried = _watch.tried, []
    try:
        yield _watch.tried
    finally:
        _watch.tried = before


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _WATCHED and _watch.tried is not None:
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[:2]
        if isinstance(address, str | bytes):
            return  # a socket of this machine's file system
        _watch.tried.append(str(address))
        raise OSError(f"the conformance kit refuses the network, but something connects to {address}")


def check_no_network(backbone: Backbone) -> None:
    """Check that a backbone with random weights is built, divided into stages and run without any connection.

    Raises:
        CheckFailed: Something connects, also where it goes on without an answer.
    """
    import torch

    reason = ""
    with no_network() as tried:
        try:
            module = backbone.build().eval()
            backbone.stages(module)
            with torch.inference_mode():
                module(*make_inputs(backbone, 1))
        except Exception as error:
            if not tried:
                raise  # it fails for another reason
            reason = f", and fails without: {first_line(error)}"
    if tried:
        raise CheckFailed(
            f"{backbone.name}: a build with `weights: none` must not use the network, but connects to {tried[0]}{reason}",
            "download in `build` where the weights are `pretrained`, and nowhere else",
        )


# --- processes --------------------------------------------------------------------------------------


def check_worker(backbone: Backbone) -> None:
    """Check that what workers are given survives the way to another process, and makes the same model there.

    The preprocessing travels by pickle. A backbone that came from an installed plugin is resolved by its name in a process
    of its own, and its features compared.

    Raises:
        CheckFailed: It cannot be pickled, comes back as another, or another process makes another model of it.
    """
    import torch

    fitted = backbone.preprocessing.fit(make_sources(backbone, 3))
    try:
        again = pickle.loads(pickle.dumps(fitted, pickle.HIGHEST_PROTOCOL))
    except Exception as error:
        raise CheckFailed(
            f"{backbone.name}: the preprocessing must survive pickling, as it travels to workers, but does not: "
            f"{first_line(error)}",
            "make its class at the top of a module, and keep functions and open files out of its fields",
        ) from error
    if again.to_dict() != fitted.to_dict():
        raise CheckFailed(f"{backbone.name}: the preprocessing must come back from pickling as it was, but is another")
    if backbone.request is None:
        return  # made by hand: no name by which another process could find it
    family = backbone.name.partition("/")[0]
    told = _in_a_process("describe_backbone", {"family": family, "request": vars(backbone.request)})
    if told.get("error"):
        raise CheckFailed(f"{backbone.name}: a worker must make it by its name, but cannot: {told['error']}")
    torch.manual_seed(0)
    here = _described(backbone)
    for what, wanted in here.items():
        if told[what] != wanted:
            raise CheckFailed(
                f"{backbone.name}: a worker must make the same {what} as this process, but makes {told[what]!r:.80}, not "
                f"{wanted!r:.80}",
                "let `resolve` depend on the request and installed files alone",
            )


def describe_backbone(given: dict[str, Any]) -> None:
    """Resolve a backbone in a process of its own, and print what it is as JSON."""
    import torch

    from autoft.discovery import discover

    torch.set_num_threads(1)
    request = given["request"]
    try:
        backbone = discover().resolve_backbone(
            f"{given['family']}/{request['model']}",
            **{name: value for name, value in request.items() if name != "model"},
        )
        torch.manual_seed(0)
        found = _described(backbone)
    except Exception as error:  # noqa: BLE001 - told to the process that asked
        found = {"error": first_line(error)}
    print(json.dumps(found))


def _described(backbone: Backbone) -> dict[str, Any]:
    """Return what two processes must agree on; features as text of few digits: threads may add in another order."""
    import torch

    module = backbone.build().eval()
    with torch.inference_mode():
        features = module(*make_inputs(backbone, 1))
    several = features if isinstance(features, tuple) else (features,)
    return {
        "preprocessing": json.loads(json.dumps(backbone.preprocessing.to_dict())),
        "stages": [[stage.name, list(stage.parameters)] for stage in backbone.stages(module)],
        "features": [f"{value:.3f}" for each in several for value in each.flatten()[:64].tolist()],
    }


def check_import(module: str) -> None:
    """Check how long a plugin's module takes to import, in a process of its own that has autoft's hooks already.

    Raises:
        CheckFailed: It cannot be imported.
        CheckWarning: It takes more than a second; which libraries it brings along.
    """
    told = _in_a_process("time_import", {"module": module})
    if told.get("error"):
        raise CheckFailed(f"{module} must be importable, but is not: {told['error']}")
    if told["seconds"] > SLOW_IMPORT:
        brought = f", with {', '.join(told['heavy'])}" if told["heavy"] else ""
        raise CheckWarning(
            f"importing {module} should take less than {SLOW_IMPORT:g} s, as every command waits for it, but takes "
            f"{told['seconds']:.1f} s{brought}",
            "import large libraries inside the functions that use them",
        )


def time_import(given: dict[str, Any]) -> None:
    """Import a module in a process of its own, and print the seconds as JSON."""
    import importlib
    import time

    from autoft import discovery  # noqa: F401 - not the plugin's seconds

    before = set(sys.modules)
    began = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        importlib.import_module(given["module"])
    except BaseException as error:  # noqa: BLE001 - told to the process that asked, whatever it is
        found["error"] = f"{type(error).__name__}: {first_line(error)}"
    found["seconds"] = time.perf_counter() - began
    found["heavy"] = [name for name in HEAVY if name in sys.modules and name not in before]
    print(json.dumps(found))


def _in_a_process(function: str, given: dict[str, Any]) -> dict[str, Any]:
    """Call one of this module's functions in a process of its own, and return the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", _BOOT.format(function=function)],
        input=json.dumps({**given, "path": sys.path}) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return {"error": f"the process ended with {done.returncode}, and said: {last}"}
    told: dict[str, Any] = json.loads(lines[-1])
    return told


# --- images -----------------------------------------------------------------------------------------


def check_image_inputs(backbone: Backbone) -> None:
    """Check that the bundle's script makes an image's inputs as training does, from the declaration as JSON.

    A script without `read_image`, `resize_and_crop` and `normalize`, as `autoft/runtime/image_classification.py` has them,
    fails: only whole models could be compared, as the gate at the end of a search does.

    Raises:
        CheckFailed: The declaration is no JSON, the script lacks a function, or the inputs differ.
    """
    import numpy as np

    from autoft.export.script import load_script

    sources = make_sources(backbone, 3)
    fitted = backbone.preprocessing.fit(sources)
    declared = fitted.to_dict()
    try:
        same = json.loads(json.dumps(declared)) == declared
    except TypeError as error:
        raise CheckFailed(
            f"{backbone.name}: `to_dict` must be JSON, but is not: {error}", "use lists and numbers"
        ) from error
    if not same:
        raise CheckFailed(f"{backbone.name}: `to_dict` must be the same after a way through JSON, but is not: {declared}")
    script = load_script(Path(fitted.runtime))
    missing = [name for name in ("read_image", "resize_and_crop", "normalize") if not hasattr(script, name)]
    if missing:
        raise CheckFailed(
            f"{backbone.name}: the script of an image model's bundle must hold `read_image`, `resize_and_crop` and "
            f"`normalize`, but lacks {', '.join(missing)}",
            "declare an `autoft.images.ImagePreprocessing`",
        )
    (made,) = fitted.inputs(_decoded(backbone, sources))
    pixels: np.ndarray = np.stack([script.resize_and_crop(script.read_image(source), declared) for source in sources])
    wanted = script.normalize(pixels, declared)
    if made.shape != wanted.shape or not np.array_equal(made.numpy(), wanted):
        apart = f" by {np.abs(made.numpy() - wanted).max():.3g}" if made.shape == wanted.shape else f", as {wanted.shape}"
        raise CheckFailed(
            f"{backbone.name}: training and bundle must make the same inputs of an image, but differ{apart}",
            "let `decode` and `inputs` do what `to_dict` declares; `autoft.images.ImagePreprocessing` does",
        )


def check_augmentation(backbone: Backbone) -> None:
    """Check that each augmentation policy gives inputs of the shape of evaluation, from its generator alone.

    Raises:
        CheckFailed: The first policy is not `none`, a shape is another, a draw cannot be repeated, or an item is changed.
    """
    import numpy as np
    import torch

    from autoft.augment import POLICIES

    preprocessing = backbone.preprocessing
    if not preprocessing.policies or preprocessing.policies[0] != POLICIES[0]:
        raise CheckFailed(
            f"{backbone.name}: the first augmentation policy must be {POLICIES[0]!r}, but there are {preprocessing.policies}"
        )
    (source,) = make_sources(backbone, 1)
    plain = preprocessing.decode(source, augmented=False)
    item = preprocessing.decode(source, augmented=True)
    before = item.clone()
    for policy in preprocessing.policies:
        first = preprocessing.augment(item, policy, np.random.default_rng(3))
        if not torch.equal(item, before):
            raise CheckFailed(
                f"{backbone.name}: augmentation {policy!r} must not change the item that it is given, but does",
                "copy it first: it is kept for the next epoch",
            )
        if first.shape != plain.shape or first.dtype != plain.dtype:
            raise CheckFailed(
                f"{backbone.name}: augmentation {policy!r} must give {tuple(plain.shape)} {plain.dtype}, as evaluation, but "
                f"gives {tuple(first.shape)} {first.dtype}"
            )
        if not torch.equal(first, preprocessing.augment(item, policy, np.random.default_rng(3))):
            raise CheckFailed(
                f"{backbone.name}: augmentation {policy!r} must give the same for the same random numbers, but does not",
                "draw from `rng` alone",
            )


def _decoded(backbone: Backbone, sources: list[Any]) -> Any:
    import torch

    return torch.stack([backbone.preprocessing.decode(source, augmented=False) for source in sources])
