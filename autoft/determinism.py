"""Whether the same study with the same seed gives the same trials bit for bit, or why it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoft.prepare import Prepared


def reasons_to_differ(prepared: Prepared, survived: Mapping[str, int]) -> list[str]:
    """Return why another search of the same study and seed, on the same machine and packages, may differ.

    Args:
        prepared: The study.
        survived: How often what kind of failure was survived in this search.

    Returns:
        A reason each; none where the table of trials and all weights repeat bit for bit.
    """
    config, device = prepared.config, prepared.device.type
    reasons = []
    if config.search.time_limit is not None:
        reasons.append("a time limit ends trials by seconds, which are never the same twice")
    if device != "cpu":
        reasons.append(f"some sums on {device} are taken in whatever order its threads come in, so last bits may differ")
    measured = [name for name in ("precision", "compile") if _is_measured(getattr(config.trainer, name), device)]
    if measured:
        reasons.append(f"{' and '.join(measured)} may be chosen otherwise, as seconds are measured for it")
    if "latency" in config.search.objectives or config.search.constraints.latency_ms is not None:
        reasons.append("latencies are measured, and decide which backbones are searched")
    if survived.get("oom"):
        reasons.append("memory ran out, and sums over a batch were divided into more parts")
    return reasons


def repeats(prepared: Prepared, survived: Mapping[str, int], *, workers: int) -> dict[str, Any]:
    """Return what `result.json` says about repeating the search.

    Args:
        prepared: The study.
        survived: As for `reasons_to_differ`.
        workers: How many trained at the same time; with another number, other trials are known when one is proposed.
    """
    reasons = reasons_to_differ(prepared, survived)
    return {"bit_for_bit": not reasons, "why_not": reasons, "seed": prepared.config.search.seed, "workers": workers}


def _is_measured(asked: object, device: str) -> bool:
    """Return whether seconds decide; `auto` measures on CUDA alone."""
    return asked == "probe" or (asked == "auto" and device == "cuda")
