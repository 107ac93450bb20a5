"""Tells whether this machine is fit for autoft: versions, devices, plugins, disk, and what to mend."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from autoft.catalog import Catalog

LOW_DISK = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        about: `python`, a package, a device, `plugin`, `disk` ...
        value: What was found.
        problem: What is wrong and what to do, or None.
    """

    about: str
    value: str
    problem: str | None = None


def examine(catalog: Catalog, folder: Path) -> list[Finding]:
    """Look at the interpreter, the installed packages, the devices, the plugins, and the disk that holds `folder`."""
    findings = [Finding("python", f"{platform.python_version()} on {platform.platform()}, {sys.executable}")]
    findings += [_package(Requirement(text)) for text in requires("autoft") or () if "extra ==" not in text]
    findings += _devices()
    for plugin in catalog.plugins:
        problem = f"{plugin.reason}; mend or uninstall {plugin.package}" if plugin.state == "broken" else None
        findings.append(Finding("plugin", f"{plugin.name} ({plugin.package} {plugin.version}): {plugin.state}", problem))
    free = shutil.disk_usage(folder).free
    low = f"less than {LOW_DISK / 1e9:.0f} GB are free: checkpoints and bundles need room" if free < LOW_DISK else None
    findings.append(Finding("disk", f"{free / 1e9:.1f} GB free at {folder}", low))
    return findings


def _package(requirement: Requirement) -> Finding:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, "not installed", f"pip install '{requirement}'")
    fits = requirement.specifier.contains(found, prereleases=True)
    return Finding(requirement.name, found, None if fits else f"autoft needs {requirement}: pip install '{requirement}'")


def _devices() -> list[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    findings = [
        Finding(
            "cpu",
            f"{psutil.cpu_count(logical=True)} threads ({torch.get_num_threads()} used by torch), "
            f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB memory free",
        )
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16 only"
            findings.append(Finding(f"cuda:{index}", f"{device.name}, {device.total_memory / 1e9:.1f} GB, {bf16}"))
    else:
        built = torch.version.cuda
        findings.append(
            Finding("cuda", f"none found (torch is built for CUDA {built})" if built else "torch is built without")
        )
    if torch.backends.mps.is_available():
        findings.append(Finding("mps", "available"))
    return findings
