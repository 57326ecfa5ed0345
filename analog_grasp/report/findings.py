"""Findings of a comparison as sentences, the answer first, and the methodology of reports.

A score is retained while it is at least 95 % of that of the adapter's digital model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from analog_grasp.devices.card import DeviceCard
from analog_grasp.report.tables import (
    MARKS,
    RETAINED,
    Comparison,
    DeviceTable,
    interval_text,
    percent,
    score_text,
)
from analog_grasp.study.config import is_saved
from analog_grasp.study.records import (
    AdapterRecord,
    LayerRecord,
    Measurement,
    TreatedAdapter,
    is_distilled,
)
from analog_grasp.study.statistics import (
    PairedDifference,
    Summary,
    averaged,
    paired_differences,
)
from analog_grasp.utils.errors import CardError
from analog_grasp.utils.metrics import is_fraction, lower_is_better
from analog_grasp.utils.time import format_time, parse_time

METHODOLOGY = (
    "A condition is one device at one time since programming. The score of an adapter in a"
    " condition is the mean over chip instances, each programmed with its own seed, and over"
    " trainings, with its 95 % interval; a single score, or equal ones, have no interval.",
    "Adapters that share frozen weights are measured on the same chip instances. The difference of"
    " two adapters is computed per training and instance, and its interval is that of the paired"
    " differences. An adapter is better or worse in a condition if this interval excludes zero, and"
    " otherwise not significantly different.",
    "The intervals are not corrected for the number of conditions: of two equal adapters, one would"
    " be better or worse by chance in about one condition in twenty. Differences marked with * are"
    " also significant at the level of 5 % after Holm's correction over all differences of the same"
    " task and metric (paired t-test). The difference over all conditions is that of the means over"
    " devices and times, per training and chip number.",
    "A score is retained up to the last time before its mean falls below 95 % of that of the"
    " digital model, or, where lower is better, exceeds it by more than a nineteenth. The 5th"
    " percentile of the chips is that of the scores of one training on one chip, from the worst.",
    "Devices and chips are simulated.",
)
TUNING_METHODOLOGY = (
    "A part of the training split is held out. Every trial trains on the rest and is measured on"
    " the held-out part, with the same seed and on the same chip instances as every other trial;"
    " its score is the mean over chip instances, devices and times since programming.",
    "A trial is pruned between two chip instances if it is worse than the best trial (Wilcoxon's"
    " signed-rank test over the measurements of both, level 0.1), or if its score is not finite.",
    "The score of the best of many trials is biased upwards. The best setting is therefore trained"
    " again on the whole training split and measured on the task's own validation split and on"
    " other chip instances, which no trial has used.",
    "Whether a searched setting matters at a noise level, a device at a time, is decided by a"
    " parabola in its logarithm, fitted to the differences of all trials from the best one on the"
    " same chips (F-test, Holm's correction over the noise levels). The scatter of the trials about"
    " it contains that of the trainings.",
    "The importance of a setting is its share in being among the best quarter of the trials"
    " (PED-ANOVA, Watanabe et al., IJCAI 2023); a single setting has all of it.",
)
_NO_INTERVAL = "there is a single chip instance, or all instances have the same"
_ONE_TRAINING = (
    "Each adapter was trained once: the intervals (Student's t) cover the variation between chips"
    " and not between trainings."
)
_TRAININGS = (
    "Each adapter was trained from {count} seeds, and every chip was measured with each training:"
    " the intervals cover both (crossed random effects, Satterthwaite's degrees of freedom)."
)
# Digital modules beyond these are summed up.
_LISTED = 5
_SECOND_STAGE = (
    "Second stage of training: after it has learned the task, {adapters} was distilled without"
    " labels, in {steps} steps, on simulated chips, none of them measured, of {chips}. The"
    " training time contains this stage."
)
_KINDS = {"grasp": "Deterministic", "stochgrasp": "Stochastic"}


def methodology(
    settings: Mapping[str, object], adapters: Sequence[AdapterRecord] = ()
) -> list[str]:
    """Return how the adapters were trained and measured, as sentences."""
    chips = settings.get("then", ["none"])
    if not isinstance(chips, list) or chips == ["none"]:
        return list(METHODOLOGY)
    distilled = dict.fromkeys(record.adapter for record in adapters if is_distilled(record))
    if not distilled:
        return list(METHODOLOGY)
    of_all = len(distilled) == len({record.adapter for record in adapters})
    names = "each adapter" if of_all else f"each of {', '.join(distilled)}"
    steps = settings.get("then_steps")
    stage = _SECOND_STAGE.format(adapters=names, steps=steps, chips=", ".join(chips))
    return [stage, *METHODOLOGY]


def ages_beyond_data(settings: Mapping[str, Any]) -> list[str]:
    """Return a sentence about each device of a run that has no data for its longest time."""
    longest = max(map(parse_time, settings.get("times", ["0s"])))
    found = []
    for name in settings.get("devices", []):
        # The file of a device may be gone since.
        with suppress(CardError):
            found.append(DeviceCard.load(name).beyond_data(longest))
    return [sentence for sentence in found if sentence]


def trainings_text(measurements: Sequence[Measurement]) -> str:
    """Return what the intervals cover, as a sentence."""
    counts = _trainings(measurements)
    if max(counts.values()) == 1:
        return _ONE_TRAINING
    names = dict.fromkeys(cell.adapter for cell in measurements)
    once = ", ".join(adapter for adapter in names if counts[adapter] == 1)
    but = f" Of {once} there is one training, and no interval over them." if once else ""
    return _TRAININGS.format(count=max(counts.values())) + but


def _trainings(measurements: Sequence[Measurement]) -> Counter[str]:
    """Return the number of trainings of each adapter."""
    trainings = {(cell.adapter, cell.training) for cell in measurements}
    return Counter(adapter for adapter, _ in trainings)


def answer(comparison: Comparison) -> str:
    """Return the answer of a comparison as one sentence.

    Of two adapters one is called better or worse by the differences that are significant after
    Holm's correction, or by the mean difference over all conditions, and it is said if both were
    trained once; of more, the counts before and after correction are stated. Where no variant is to
    be chosen, the one that retains the best digital score longest is described. The device is the
    one on which its score is retained longest, then the one with the best score at the last time.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, score)
        ...     for name, scores in [("grasp", (0.5, 0.6)), ("stochgrasp", (0.75, 0.86))]
        ...     for i, score in enumerate(scores)
        ... ]
        >>> print(answer(Comparison(cells)).partition(":")[0])
        Stochastic (stochgrasp), on pcm, for 0s
    """
    tables = comparison.subjects[0]
    choice, winner, reason = _choice(comparison, tables)
    sign = -1.0 if lower_is_better(tables[0].metric) else 1.0
    measured = [
        (table, place, [cell for cell in cells if cell][-1])
        for table in tables
        for place, cells in enumerate(table.scores)
        if any(cells)
    ]

    def rank(
        where: tuple[DeviceTable, int, Summary], start: float | None = None
    ) -> tuple[float, float]:
        seconds = comparison.retained(*where[:2], start)
        return -1.0 if seconds is None else seconds, sign * where[2].mean

    if winner is None:
        # A model that has not learned the task retains its own digital score longest.
        digital = comparison.digital(tables[0]).values()
        best = max(digital, key=lambda score: sign * score, default=None)
        winner = max(measured, key=lambda where: rank(where, best))[1]
    own = sorted((each for each in measured if each[1] == winner), key=rank, reverse=True)
    (table, place, last), seconds = own[0], rank(own[0])[0]
    devices = len(own)
    known = comparison.digital_score(table, place) is not None
    share = f"{100 * RETAINED:.0f} % of its {'digital' if known else 'first'} {table.metric}"
    score = f"{interval_text(last, table.metric)}{percent(table.metric)}"
    score += f" at {format_time(last.time_s)}"
    label = table.labels[place]
    if seconds < 0:
        is_best = devices > 1 and rank(own[1]) < rank(own[0])
        among = f", the best of {devices} devices" if is_best else ""
        duration, result = "", f"does not retain {share}, and has {score}{among}"
    else:
        is_longest = devices > 1 and rank(own[1])[0] < seconds
        among = f" (the longest of {devices} devices)" if is_longest else ""
        duration = f", for {format_time(seconds)}"
        result = f"retains {share} there{among} and has {score}"
    subject = label if choice or reason else "it"
    return f"{choice or label}, on {table.device}{duration}: {reason}{subject} {result}."


def _choice(comparison: Comparison, tables: Sequence[DeviceTable]) -> tuple[str, int | None, str]:
    """Return what to choose, the place of the only variant to choose if any, and the reason."""
    labels = tables[0].labels
    differences = [_differences(tables, place) for place in range(len(labels) - 1)]
    tested = max((_tested(cells) for cells in differences), default=0)
    if len(labels) != 2:
        return "", None, _counts(tables[0], differences, tested) if tested else ""
    ((cells,), both) = differences, f"{labels[1]} and {labels[0]}"
    if not tested:
        return "", None, f"{both} cannot be compared: {_NO_INTERVAL}; "
    corrected, average = _corrected(cells), _average(comparison, tables, 0)
    verdicts = {verdict for verdict in MARKS if corrected[verdict]}
    reason = f"{both} differ significantly in none of {_conditions(tested)}{_span(cells)}"
    if verdicts:
        reason = f"{labels[1]} is better than {labels[0]} in {corrected['better']} and worse in"
        reason += f" {corrected['worse']} of {_conditions(tested)}"
    if average is not None:
        verdicts |= MARKS.keys() & {average.verdict}
        reason += f", on average by {_points(average)}"
    # Chips alone cannot distinguish two adapters from two trainings of one.
    trained = {TreatedAdapter.parse(variant.adapter).adapter for variant in comparison.variants}
    if len(trained) == 2 and max(_trainings(comparison.measurements).values()) == 1:
        reason = f"with one training each, {reason}"
    if len(verdicts) != 1:
        return "It depends on the condition" if verdicts else "Either", None, f"{reason}; "
    place = 1 if verdicts == {"better"} else 0
    winner = labels[place]
    known = set(labels) == set(_KINDS)
    return f"{_KINDS[winner]} ({winner})" if known else winner, place, f"{reason}; "


def _counts(
    table: DeviceTable, differences: Sequence[Sequence[PairedDifference]], tested: int
) -> str:
    """Return in how many conditions each of several variants is better and worse."""
    counts: dict[str, list[str]] = {}
    for label, baseline, cells in zip(table.labels[1:], table.baselines, differences, strict=True):
        own, corrected = Counter(cell.verdict for cell in cells), _corrected(cells)
        pairs = (f"{each['better']} / {each['worse']}" for each in (own, corrected))
        counts.setdefault(baseline, []).append("{} {} ({})".format(label, *pairs))
    listed = "; than ".join(f"{base}: {', '.join(found)}" for base, found in counts.items())
    return f"better / worse (after Holm's correction) than {listed} of {_conditions(tested)}; "


def _corrected(cells: Sequence[PairedDifference]) -> Counter[str]:
    return Counter(cell.verdict for cell in cells if cell.holds_corrected)


def _differences(tables: Sequence[DeviceTable], place: int) -> list[PairedDifference]:
    """Return the measured differences of a variant from its baseline."""
    cells = (cell for table in tables for cell in table.differences[place])
    return [cell for cell in cells if cell and cell.n]


def _average(
    comparison: Comparison, tables: Sequence[DeviceTable], place: int
) -> PairedDifference | None:
    """Return the mean difference of a variant over all conditions; None without an interval.

    There is none over a single condition, which has its own.
    """
    labels = tables[0].labels
    pair = labels.index(tables[0].baselines[place]), place + 1
    cells = [c for c in comparison.measurements if (c.task, c.metric) == tables[0][:2]]
    found = paired_differences(averaged(cells), *(comparison.variants[i] for i in pair))
    several = len({(cell.device, cell.time_s) for cell in cells}) > 1
    return found[0] if several and found and found[0].low is not None else None


def _points(cell: PairedDifference) -> str:
    return interval_text(cell, cell.metric) + " points" * is_fraction(cell.metric)


def _tested(cells: Sequence[PairedDifference]) -> int:
    return sum(cell.verdict != "open" for cell in cells)


def _span(cells: Sequence[PairedDifference]) -> str:
    """Return the smallest and the largest mean difference."""
    if len(cells) < 2:
        return ""
    low, high = (score_text(cell.mean, cell.metric, "+") for cell in _extremes(cells))
    return f" ({low} to {high}{' points' if is_fraction(cells[0].metric) else ''})"


def _extremes[Cell: (PairedDifference, Summary)](cells: Sequence[Cell]) -> tuple[Cell, Cell]:
    """Return the cells with the lowest and the highest mean."""
    return min(cells, key=lambda c: c.mean or 0.0), max(cells, key=lambda c: c.mean or 0.0)


def _conditions(count: int) -> str:
    return f"{count} condition{'' if count == 1 else 's'}"


def findings(comparison: Comparison, settings: Mapping[str, Any] = {}) -> list[str]:
    """Return the results of a comparison as sentences, the answer first.

    The first one also states that a run, of which these are the settings, is not complete, or that
    its intervals are wider than `until_ci`.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, score)
        ...     for name, scores in [("grasp", (0.5, 0.6)), ("lora", (0.75, 0.86))]
        ...     for i, score in enumerate(scores)
        ... ]
        >>> print(findings(Comparison(cells))[1].partition(",")[0])
        lora is better than grasp in 1 of 1 condition (device and time)
    """
    subjects = comparison.subjects
    sentences = [each for tables in subjects for each in _comparisons(comparison, tables)]
    sentences += [sentence for tables in subjects for sentence in _ranges(tables)]
    limits = [*_gaps(comparison, settings), *_too_wide(comparison, settings)]
    return [" ".join([answer(comparison), *limits]), *sentences]


def _comparisons(comparison: Comparison, tables: Sequence[DeviceTable]) -> list[str]:
    """Return the differences of each variant from its baseline."""
    sentences, subject = [], f"{tables[0].task}, {tables[0].metric}"
    compared = zip(tables[0].labels[1:], tables[0].baselines, strict=True)
    for place, (label, baseline) in enumerate(compared):
        cells = _differences(tables, place)
        counts = Counter(cell.verdict for cell in cells)
        if tested := _tested(cells):
            sentence = (
                f"{label} is better than {baseline} in {counts['better']} of"
                f" {_conditions(tested)} (device and time), worse in {counts['worse']} and not"
                f" significantly different in {counts['not significant']}"
            )
            if counts.keys() & MARKS.keys():
                corrected = _corrected(cells)
                sentence += (
                    f"; after Holm's correction it is better in {corrected['better']} and worse in"
                    f" {corrected['worse']}"
                )
            sentences.append(f"{sentence} ({subject}).")
        if counts["open"]:
            sentences.append(
                f"The difference of {label} and {baseline} has no interval in"
                f" {_conditions(counts['open'])} ({subject}): {_NO_INTERVAL}."
            )
        if len(cells) > 1:
            low, high = (_at(cell, " points") for cell in _extremes(cells))
            average = _average(comparison, tables, place)
            mean = "" if average is None else f" and is {_points(average)} over all conditions"
            span = f"is {low}" if low == high else f"ranges from {low} to {high}"
            sentences.append(f"The mean difference {label} − {baseline} {span}{mean} ({subject}).")
    return sentences


def _ranges(tables: Sequence[DeviceTable]) -> list[str]:
    """Return the lowest and the highest mean score of each variant, or its only one."""
    sentences = []
    for place, label in enumerate(tables[0].labels):
        if cells := [cell for table in tables for cell in table.scores[place] if cell]:
            low, high = (_at(cell, " %") for cell in _extremes(cells))
            shown = f"is {low}" if len(cells) == 1 else f"ranges from {low} to {high}"
            sentences.append(f"The {tables[0].metric} of {label} on {tables[0].task} {shown}.")
    return sentences


def _at(cell: PairedDifference | Summary, unit: str) -> str:
    """Return a mean with its interval, and where it was measured; fractions have the unit."""
    shown = interval_text(cell, cell.metric) + unit * is_fraction(cell.metric)
    return f"{shown} on {cell.device} at {format_time(cell.time_s)}"


def _gaps(comparison: Comparison, settings: Mapping[str, Any]) -> list[str]:
    """Return the number of measurements that the run, or a full grid of what is measured, lacks."""
    measured = comparison.measurements
    chips = Counter(device for device, _ in {(cell.device, cell.repeat) for cell in measured})
    subjects = {(cell.task, cell.metric) for cell in measured}
    trained = {(cell.adapter, cell.training, cell.placement) for cell in measured}
    times = {cell.time_s for cell in measured}
    rows, columns, missing = sum(chips.values()), len(trained) * len(times), ""
    if "devices" in settings:
        devices, repeats = settings["devices"], settings["repeats"]
        treatments = 1 + ("schedule" in settings) + len(settings.get("recalibrate", ()))
        saved = sum(map(is_saved, settings["adapters"]))
        new = (len(settings["adapters"]) - saved) * settings.get("trainings", 1)
        # With until_ci there are more than the run began with.
        rows = sum(max(count, repeats) for count in chips.values())
        rows += repeats * (len(devices) - len(chips))
        columns = max(columns, (saved + new) * treatments * len(settings["times"]))
        missing = " on fewer chips or devices" if rows > sum(chips.values()) else ""
    full = rows * len(subjects) * columns
    if full <= len(measured):
        return []
    return [
        f"The results are partial: {len(measured)} of {full} measurements are available{missing}."
    ]


def _too_wide(comparison: Comparison, settings: Mapping[str, Any]) -> list[str]:
    """Return the widest interval of a run that was to continue until all are narrower."""
    wanted = settings.get("until_ci")
    cells = [c for t in comparison.tables for row in (*t.scores, *t.differences) for c in row if c]
    known = [cell for cell in cells if cell.low is not None and cell.high is not None]

    def half(cell: PairedDifference | Summary) -> float:
        unit = 100.0 if is_fraction(cell.metric) else 1.0
        return unit * ((cell.high or 0.0) - (cell.low or 0.0)) / 2

    if wanted is None or not known or half(widest := max(known, key=half)) <= wanted:
        return []
    return [
        f"The widest 95 % interval is ±{half(widest):.3g} ({widest.metric} on {widest.device} at"
        f" {format_time(widest.time_s)}), wider than until_ci {wanted:g}: the limits of trainings"
        " and chips were reached, or the run is not finished."
    ]


def coverage(layers: Sequence[LayerRecord]) -> list[str]:
    """Return which share of the weights is on tiles and which modules are not, as a sentence.

    Args:
        layers: Layers on tiles, and modules with digital weights, which have no tiles.

    Returns:
        One sentence; none without layers.

    Example:
        >>> layer = LayerRecord("pcm", 0, 0.0, "dense", 1, 300, 0.5, 0.1)
        >>> print(*coverage([layer, LayerRecord("pcm", 0, 0.0, "conv", 0, 100, 0.0, 0.0)]))
        75.0% of the model's weights are on tiles; digital: conv (100).
    """
    if not layers:
        return []
    first = [x for x in layers if (x.device, x.time_s) == (layers[0].device, layers[0].time_s)]
    digital = sorted((x for x in first if not x.tiles), key=lambda x: -x.cells)
    share = sum(x.cells for x in first if x.tiles) / sum(x.cells for x in first)
    names = [f"{x.layer} ({x.cells:,})" for x in digital[:_LISTED]]
    if others := digital[_LISTED:]:
        names.append(f"{len(others)} more ({sum(x.cells for x in others):,})")
    listed = f"; digital: {', '.join(names)}" if names else ""
    return [f"{share:.1%} of the model's weights are on tiles{listed}."]
