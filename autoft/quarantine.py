"""The quarantine list: how many samples may be unreadable before the data as a whole is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoft.errors import DataError, nearest
from autoft.specs import Rejected

DEFAULT_MAX_REJECTED = 0.01
_COMMON = ("max_rejected", "for_training")
_EXAMPLES = 5


def common_options(options: Mapping[str, Any], format_name: str, others: Sequence[str] = ()) -> tuple[float, bool]:
    """Return `max_rejected` and `for_training` of a data format's options, and check the names of all.

    Args:
        options: As given to the format's `load`.
        format_name: For errors.
        others: Names of the format's further options.

    Raises:
        DataError: An option that the format does not have, or a value that is none.
    """
    known = (*_COMMON, *others)
    for name in options:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            listed = f"{', '.join(known[:-1])} and {known[-1]}"
            raise DataError(f"the options of {format_name} are {listed}, but got {name!r}", hint=hint)
    for_training = options.get("for_training", True)
    if not isinstance(for_training, bool):
        raise DataError(f"`for_training` must be true or false, but got {for_training!r}")
    share = options.get("max_rejected", DEFAULT_MAX_REJECTED)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise DataError(f"`max_rejected` must be a share from 0 to 1, but got {share!r}", hint="0.01 is 1 %")
    return float(share), for_training


def check_rejected(rejected: Sequence[Rejected], total: int, max_rejected: float, noun: str, where: object) -> None:
    """Refuse data of which too much cannot be read.

    One unreadable sample is always tolerated, as 1 % of a small set would be none; but a share of 0 tolerates none.

    Args:
        rejected: What could not be read.
        total: Samples in all.
        max_rejected: The share that is tolerated.
        noun: What they are, such as `images`.
        where: The file or folder.

    Raises:
        DataError: Too many; naming some.
    """
    tolerated = max(1, math.floor(max_rejected * total)) if max_rejected > 0 else 0
    if rejected and (len(rejected) > tolerated or len(rejected) == total):
        listed = "".join(f"\n  {entry.id}: {entry.reason}" for entry in rejected[:_EXAMPLES])
        more = f"\n  and {len(rejected) - _EXAMPLES} more" if len(rejected) > _EXAMPLES else ""
        raise DataError(
            f"at most {tolerated} of {total} {noun} may be unreadable, but {len(rejected)} in {where} are:{listed}{more}",
            hint="repair or delete them, or raise the data option `max_rejected` (a share)",
        )
