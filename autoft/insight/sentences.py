"""Says in plain words what importances and dependences show, and no more than noise allows."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from autoft.insight.dependence import Dependence, Point
from autoft.insight.evidence import DEPTHS, Evidence
from autoft.insight.importance import ENOUGH, FEWEST, Importances

SUPPORT = 3  # trials that a depth, or one of a few values, must have before it is judged
CLIFF = 0.6  # share of the whole fall that one stretch of depths must have to be called a cliff
STRETCH = 3  # stages that this stretch has at most
SMALL = 0.01  # numbers below it are written as 3e-4
NOT_APART = "cannot be told apart"
NAMED = 2  # settings that are named beside the most important one


def counted(evidence: Evidence) -> str:
    """Return how many trials there are, in words."""
    whole = sum(trial.epochs == evidence.epochs for trial in evidence.trials)
    left = f"; {evidence.left_out} that failed, repeat another or have not begun are left out" if evidence.left_out else ""
    return f"{len(evidence.trials)} trials, {whole} of them with all {evidence.epochs} epochs{left}"


def too_few(evidence: Evidence) -> str | None:
    """Return a warning where there are too few trials to conclude anything, or much; else None."""
    count = len(evidence.trials)
    if count < FEWEST:
        return (
            f"nothing can be concluded: that needs {FEWEST} trials or more, so that two are in the best fifth, "
            f"but there {'is' if count == 1 else 'are'} {count}"
        )
    if count < ENOUGH:
        return (
            f"hints, no more: shares are sound from {ENOUGH} trials on, so that five are in the best fifth, "
            f"but there are {count}"
        )
    return None


def tell(
    evidence: Evidence, found: Importances | None, dependences: Sequence[Dependence], noise: float, noise_of: str
) -> list[str]:
    """Return what there is to say, the most important first.

    Args:
        evidence: What the run knows.
        found: How much each setting matters; None where nothing tells it.
        dependences: On some settings.
        noise: Of the metric: what is nearer is not told apart.
        noise_of: What it is from, in words.
    """
    metric = Metric(evidence.metric, noise)
    shares = _of_importances(found, {one.name for one in dependences if _shows(one, noise)})
    depths = [sentence for one in dependences if one.name in DEPTHS for sentence in _of_depth(one, evidence, metric)]
    others = [_of_setting(one, metric) for one in dependences if one.name not in DEPTHS]
    flat = [name for name, text in others if text == NOT_APART]
    return [
        *shares,
        *depths,
        *(f"`{name}`: {text}" for name, text in others if text != NOT_APART),
        *([f"{_listed(flat)}: the values that were tried {NOT_APART}"] if flat else []),
        f"differences of {metric.name} below {metric.written(noise)} count as noise: {noise_of}",
    ]


class Metric:
    """Writes a metric's values with as many digits as noise leaves them.

    Args:
        name: Of the metric.
        noise: Of its values.
    """

    def __init__(self, name: str, noise: float) -> None:
        self.name = name
        self.noise = noise
        self._digits = min(6, max(0, -math.floor(math.log10(noise)))) if noise > 0 else 6

    def written(self, value: float) -> str:
        """Return a value in figures."""
        return f"{value:.{self._digits}f}"

    def both(self, one: Point, other: Point) -> str:
        """Return two points' values."""
        return f"{self.name} {self.written(one.mean)} and {self.written(other.mean)}"


def written(name: str, point: Point) -> str:
    """Return a setting's value in words: `off`, `60 %`, `3e-4`."""
    if point.off:
        return "off"
    if isinstance(point.value, str | bool):
        return str(point.value)
    if name == "freeze_fraction":
        return f"{100 * point.value:.0f} %"
    if not isinstance(point.value, float):
        return str(point.value)
    if point.value != 0 and abs(point.value) < SMALL:
        digits, power = f"{point.value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{point.value:.3g}"


def _of_importances(found: Importances | None, shown: Collection[str]) -> list[str]:
    """Say which settings matter; `shown` are those some of whose values are better than others."""
    if found is None or not found.settings:
        return []
    sure = [setting for setting in found.settings if setting.stands_out and setting.name in shown]
    along = [setting for setting in found.settings if setting.stands_out and setting.name not in shown]
    # a search that gets better by one setting keeps others where they happened to be, so that they go with good trials too
    doubtful = [
        f"`{setting.name}` goes with the best fifth of the trials ({100 * setting.share:.0f} % of what sets them apart), "
        "but its values cannot be told apart: it may only have come along with others"
        for setting in along[:NAMED]
    ]
    if not sure and along:
        return doubtful
    if not sure:
        most = found.settings[0]
        return [f"no setting stands out: `{most.name}` has the largest share, {100 * most.share:.0f} %, which may be chance"]
    first, *others = sure
    what = f"of what sets the best fifth of the trials apart; chance alone may give {100 * first.chance:.0f} %"
    listed = ", ".join(f"`{setting.name}` ({100 * setting.share:.0f} %)" for setting in others[:NAMED])
    after = f"; then {listed}" if others else "" if along else "; no other stands out"
    matters = "matters most" if first is found.settings[0] else "matters"
    return [f"`{first.name}` {matters} ({100 * first.share:.0f} % {what}){after}", *doubtful]


def _of_setting(found: Dependence, metric: Metric) -> tuple[str, str]:
    """Return a setting's name, and what is said of it."""
    name, points = found.name, found.points
    judged = _judged(found)
    if len(judged) < 2:
        return name, f"nothing can be said, since fewer than two values have {SUPPORT} trials or more"
    best = max(judged, key=lambda index: found.better * points[index].mean)
    good = [index for index in judged if not found.is_better(best, index, metric.noise)]
    if good == judged:
        return name, NOT_APART
    values = f"{metric.name} {metric.written(points[best].mean)}"
    worst = min(judged, key=lambda index: found.gain(index, best))
    against = f"{metric.written(points[worst].mean)} at {written(name, points[worst])}"
    if not found.ordered:
        names = " or ".join(f"`{written(name, points[index])}`" for index in good)
        return name, f"best {names} ({values}; {against})"
    if points[0].off and 0 in good:
        return name, f"off is as good as any value that was tried ({values}; {against})"
    low, high = _stretch(good, best)
    if low == high == len(points) - 1:
        where = f"best at the largest value tried, {written(name, points[low])}"
    elif low == high == (1 if points[0].off else 0):
        where = f"best at the smallest value tried, {written(name, points[low])}"
    elif low == high:
        where = f"best at about {written(name, points[low])}"
    elif high == len(points) - 1:
        where = f"best from {written(name, points[low])} on, up to the largest value tried, {written(name, points[high])}"
    elif low == (1 if points[0].off else 0):
        where = f"best up to {written(name, points[high])}, down to the smallest value tried, {written(name, points[low])}"
    else:
        where = f"best between {written(name, points[low])} and {written(name, points[high])}"
    return name, f"{where} ({values}; {against})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _judged(found: Dependence) -> list[int]:
    """Return the points that enough is known of."""
    # between the values of a curve the trials beside a point tell of it too; one of a few values stands for itself
    between = found.ordered and len(found.points) > 1
    return [index for index, point in enumerate(found.points) if point.trials >= SUPPORT or (between and not point.off)]


def _shows(found: Dependence, noise: float) -> bool:
    """Return whether some values are better than others."""
    judged = _judged(found)
    best = max(judged, key=lambda index: found.better * found.points[index].mean, default=0)
    return any(found.is_better(best, index, noise) for index in judged)


def _stretch(good: Sequence[int], best: int) -> tuple[int, int]:
    """Return the first and the last of the good points that are next to each other and to the best."""
    low = high = best
    while low - 1 in good:
        low -= 1
    while high + 1 in good:
        high += 1
    return low, high


def _of_depth(found: Dependence, evidence: Evidence, metric: Metric) -> list[str]:
    name, points = found.name, found.points
    if not found.ordered:
        return ["`{}`: {}".format(*_of_setting(found, metric))]
    known = [index for index, point in enumerate(points) if point.trials >= SUPPORT]
    if len(known) < 2:
        return [f"of how many stages to freeze nothing can be said: fewer than two depths have {SUPPORT} trials or more"]
    least, last = known[0], known[-1]
    deeper = known[:0:-1]
    better = next((index for index in deeper if found.is_better(index, least, metric.noise)), None)
    equal = next((index for index in deeper if found.is_equal(index, least, metric.noise)), None)
    if better is not None and equal is not None and equal < better:
        equal = None  # the deeper one is cheaper and better
    worse = next((index for index in known[1:] if found.is_better(least, index, metric.noise)), None)
    cliff = _cliff(found, known, metric.noise)
    sentences = []
    if equal is not None:
        sentences.append(_compared(found, equal, least, evidence, metric, "as good as", "within"))
    if better is not None:
        sentences.append(_compared(found, better, least, evidence, metric, "better than", "more than"))
    if cliff is not None:
        before, after = points[cliff[0]], points[cliff[1]]
        sentences.append(
            f"{metric.name} falls between {_stages(name, before)} and {_stages(name, after)} frozen: "
            f"from {metric.written(before.mean)} to {metric.written(after.mean)}"
        )
    elif worse is not None:
        already = "already worse than" if worse != last else "worse than"
        sentences.append(_compared(found, worse, least, evidence, metric, already, "more than"))
    if not sentences:
        sentences.append(
            f"{_freezing(name, points[last], evidence)} and {_shallow(name, points[least])} cannot be told apart "
            f"({metric.both(points[last], points[least])}, uncertain by {metric.written(found.spread(last, least))})"
            f"{_cheaper(found, last, least, '; the first is ')}"
        )
    return sentences


def _compared(
    found: Dependence, deep: int, least: int, evidence: Evidence, metric: Metric, verdict: str, beside: str
) -> str:
    name, points = found.name, found.points
    apart = metric.written(abs(found.gain(deep, least)))
    return (
        f"{_freezing(name, points[deep], evidence)} is {verdict} {_shallow(name, points[least])} "
        f"({metric.both(points[deep], points[least])}, difference {apart}, {beside} the noise of "
        f"{metric.written(metric.noise)}){_cheaper(found, deep, least)}"
    )


def _cliff(found: Dependence, known: Sequence[int], noise: float) -> tuple[int, int] | None:
    """Return the shortest stretch of depths with most of the fall from the best depth to the worst deeper one."""
    whole = max(found.gain(one, other) for place, one in enumerate(known) for other in known[place:])
    for length in range(1, STRETCH + 1):
        stretches = list(zip(known, known[length:], strict=False))
        steepest = max(stretches, key=lambda stretch: found.gain(*stretch), default=None)
        if steepest and found.gain(*steepest) >= CLIFF * whole and found.is_better(*steepest, noise):
            return steepest
    return None


def _freezing(name: str, point: Point, evidence: Evidence) -> str:
    if name == "freeze_fraction":
        return f"freezing {written(name, point)} of the stages"
    stages = f" of {evidence.stages}" if evidence.stages else ""
    return f"freezing {written(name, point)}{stages} stages"


def _shallow(name: str, point: Point) -> str:
    return "none" if point.value == 0 else _stages(name, point)


def _stages(name: str, point: Point) -> str:
    return written(name, point) + (" of the stages" if name == "freeze_fraction" else "")


def _cheaper(found: Dependence, point: int, than: int, words: str = " and ") -> str:
    times = found.cheaper(point, than)
    if times is None:
        return ""
    return f"{words}{times:.1f} times cheaper" if times >= 1.05 else ""
