"""Report of a tuning: tables, findings, trials.csv and summary.md."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas  # type: ignore[import-untyped]
from scipy import stats

from analog_grasp.report.findings import findings
from analog_grasp.report.tables import (
    Comparison,
    TextTable,
    adapter_text,
    device_text,
    markdown_bullets,
    markdown_escape,
    markdown_table,
    metric_title,
    percent,
    score_text,
    settings_text,
    unit,
)
from analog_grasp.study.statistics import Estimate, estimate, holm, is_fraction
from analog_grasp.tuning.search_space import WORSE, Range, Trial, value_text, values_text
from analog_grasp.utils.time import format_time

METHODOLOGY = (
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
_BEST_TRIALS = 10
# Fewest trials to which a curve is fitted, and the level at which a setting matters.
_FEWEST_FOR_CURVE, _MATTERS = 6, 0.05
_NAMED_LEVELS = 4
VALIDATION_TITLE = "Best setting on the validation split, which no trial has used"
TOO_FEW = "There are too few complete trials to compute the importance of the settings."


@dataclass(frozen=True)
class Trials:
    """Trials of a tuning, and the facts that its report needs.

    Attributes:
        task, metric: Task and the metric that is tuned for.
        space: Searched settings with their ranges.
        given: Values of the searched settings as requested.
        trials: Finished trials.
        front: Pareto front of the trials, the best one first.
        multi: True with two goals, the score after drift and the digital score.
        importance: See `Tuning.importance`.
    """

    task: str
    metric: str
    space: Mapping[str, Range]
    given: Mapping[str, Any]
    trials: Sequence[Trial]
    front: Sequence[Trial]
    multi: bool
    importance: Mapping[str, Mapping[str, float]]

    @property
    def title(self) -> str:
        """Title of the report."""
        return f"Best {' and '.join(self.space)} for {self.metric} after drift on {self.task}"

    @property
    def levels(self) -> list[tuple[str, float]]:
        """Noise levels: every device at every drift time in seconds."""
        return list(dict.fromkeys(level for trial in self.trials for level in trial.cells))


def trials_csv(found: Trials) -> str:
    """Return the text of trials.csv: one row per finished trial, with the mean at every level.

    A pruned trial has an empty score, and the reason in the column ``pruned``.
    """
    rows = []
    for trial in found.trials:
        values = {name: trial.values[name] for name in found.space}
        outcome = {name: getattr(trial, name) for name in ("score", "digital", "seconds", "pruned")}
        estimates = {level: level_estimate(trial, level) for level in found.levels}
        means = {_level(level): e and e.mean for level, e in estimates.items()}
        rows.append({"number": trial.number, **values, **outcome, **means})
    # Objects, as a column of numbers would turn whole ones with gaps into floats.
    return pandas.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


def tuning_findings(found: Trials) -> list[str]:
    """Return the results of the trials as sentences, the best setting first."""
    best, metric = found.front[0], found.metric
    whole = sum(trial.score is not None for trial in found.trials)
    score, digital = (score_text(s, metric) + percent(metric) for s in (best.score, best.digital))
    sentences = [
        f"The best of {whole} complete trials has {values_text(best.values)}: {metric} {score} "
        f"after drift and {digital} digital ({found.task}, on held-out training data)."
    ]
    without = {**found.given, "noise_weight": 0.0} if "noise_weight" in found.space else {}
    for title, values in (("as requested", found.given), ("without the noise-aware loss", without)):
        other = next((t for t in found.trials if t.values == values), None)
        if other is not None and other.number != best.number and values:
            result = _compared(best, other, metric)
            sentences.append(f"The setting {title} ({values_text(values)}) {result}.")
    sentences += filter(None, (effect_sentence(found, name) for name in found.space))
    if found.multi:
        sentences.append(
            f"{len(found.front)} trials are on the Pareto front: no other trial is better in both "
            "scores. The best trial is the one with the highest score after drift."
        )
    pruned = [trial for trial in found.trials if trial.pruned]
    worse = [trial for trial in pruned if trial.pruned == WORSE]
    if worse:
        verb = "was" if len(worse) == 1 else "were"
        sentences.append(f"{len(worse)} of {len(found.trials)} trials {verb} pruned: {WORSE}.")
    sentences += [
        f"Trial {trial.number} ({values_text(trial.values)}) failed: {trial.pruned.rstrip('.')}."
        for trial in pruned
        if trial not in worse
    ]
    return sentences


class Effect(NamedTuple):
    """Effect of a searched setting on the score at a noise level.

    Attributes:
        level: Device and drift time, s.
        span: Difference between the highest and the lowest fitted score of the trials.
        p_value: Of no effect, corrected for the number of levels.
    """

    level: tuple[str, float]
    span: float
    p_value: float


def setting_effects(found: Trials, name: str) -> list[Effect]:
    """Return the effect of a setting at each noise level, by parabolas fitted to the trials.

    Trials with a value of zero or of text do not count; there is no effect with fewer than six.
    """
    best, effects = found.front[0], []
    for level in found.levels:
        points = [
            (math.log10(value), statistics.fmean(np.subtract(scores, best.cells[level][:count])))
            for trial in found.trials
            if (scores := trial.cells.get(level))
            and (count := len(scores)) <= len(best.cells[level])
            and isinstance(value := trial.values[name], int | float)
            and value > 0
        ]
        if len({x for x, _ in points}) < _FEWEST_FOR_CURVE:
            return []
        x, y = np.array(points).T
        fitted = np.polynomial.Polynomial.fit(x, y, 2)(x)
        explained, left = float(((fitted - y.mean()) ** 2).sum()), float(((y - fitted) ** 2).sum())
        ratio = (explained / 2) / (left / (len(x) - 3)) if left else math.inf * explained
        p_value = float(stats.f.sf(ratio, 2, len(x) - 3)) if explained else 1.0
        effects.append(Effect(level, float(np.ptp(fitted)), p_value))
    corrected = holm([effect.p_value for effect in effects]).tolist()
    return [e._replace(p_value=p) for e, p in zip(effects, corrected, strict=True)]


def effect_sentence(found: Trials, name: str) -> str:
    """Return at which noise levels a setting matters; empty with too few trials."""
    effects = setting_effects(found, name)
    if not effects:
        return ""
    matters = [effect for effect in effects if effect.p_value < _MATTERS]
    values = [v for t in found.trials if isinstance(v := t.values[name], int | float) and v > 0]
    across = f"{name} from {value_text(min(values))} to {value_text(max(values))}"
    if not matters:
        most = max(effects, key=lambda effect: effect.span)
        return (
            f"The score does not depend on {across} at any of {len(effects)} noise levels: the "
            f"fitted scores differ by at most {_span(most, found)}, which is not significant."
        )
    named = sorted(matters, key=lambda effect: effect.p_value)[:_NAMED_LEVELS]
    listed = ", ".join(f"{_span(effect, found)} at {_level(effect.level)}" for effect in named)
    more = len(matters) - len(named)
    others = f" and {more} more" if more else ""
    rest = "; at the others it does not matter" if len(matters) < len(effects) else ""
    return (
        f"The score depends on {across} at {len(matters)} of {len(effects)} noise levels "
        f"({listed}{others}){rest}."
    )


def _span(effect: Effect, found: Trials) -> str:
    return f"{100 * effect.span:.1f} points" if is_fraction(found.metric) else f"{effect.span:.3g}"


def _level(level: tuple[str, float]) -> str:
    return f"{level[0]}@{format_time(level[1])}"


def trial_table(found: Trials) -> TextTable:
    """Return the ten best trials, or the Pareto front with two goals."""
    measured = [trial for trial in found.trials if trial.score is not None]
    best = sorted(measured, key=lambda trial: -(trial.score or 0))[:_BEST_TRIALS]
    rows = [
        (
            str(trial.number),
            *(value_text(trial.values[name]) for name in found.space),
            *(score_text(score, found.metric) for score in (trial.score, trial.digital)),
        )
        for trial in (found.front if found.multi else best)
    ]
    which = "Trials on the Pareto front" if found.multi else "Best trials"
    title = metric_title(found.metric)
    columns = ("trial", *found.space, f"{title} after drift", f"{title} digital")
    return TextTable(f"{which}, on held-out training data", columns, rows)


def importance_table(found: Trials) -> TextTable:
    """Return the importance of each searched setting for each goal."""
    goals = {"score": "after drift", "digital": "digital"}
    shown = [goal for goal in goals if goal in found.importance]
    rows = [
        (name, *(f"{found.importance[goal][name]:.0%}" for goal in shown)) for name in found.space
    ]
    title = "Importance of the settings (PED-ANOVA)"
    return TextTable(title, ("setting", *(goals[goal] for goal in shown)), rows)


def level_estimate(trial: Trial, level: tuple[str, float]) -> Estimate | None:
    """Return mean and interval over the measured chips at a noise level; None without any."""
    scores = trial.cells.get(level)
    return estimate(scores) if scores else None


def _compared(best: Trial, other: Trial, metric: str) -> str:
    """Return the score of a trial and the difference of the best one on the same chips."""
    if other.score is None:
        return "has a lower score: its trial was pruned"
    by_level = [np.subtract(best.cells[level], other.cells[level]) for level in best.cells]
    chips = [statistics.fmean(differences) for differences in zip(*by_level, strict=True)]
    result = estimate(chips)
    half = "" if result.high is None else f" ±{unit(metric) * (result.high - result.mean):.2g}"
    points = " points" if is_fraction(metric) else ""
    return (
        f"has {score_text(other.score, metric)} after drift; the difference of the best setting is "
        f"{unit(metric) * result.mean:+.2g}{half}{points} on the same "
        f"{'chip instance' if len(chips) == 1 else f'{len(chips)} chip instances'} of each device"
    )


def tuning_markdown(found: Trials, settings: Mapping[str, object], comparison: Comparison) -> str:
    """Return the text of summary.md: the trials, and the best setting on the validation split.

    Args:
        found: The trials, at least one of them complete.
        settings: Names and values to show.
        comparison: The best setting on the task's own validation split.
    """
    first, *further = tuning_findings(found)
    figures = [f"{found.metric}_vs_{name}" for name in found.space]
    parts = [
        f"# {markdown_escape(found.title)}",
        markdown_escape(first),
        *(f"![{name}]({name}.svg)" for name in [*figures, "front"]),
        markdown_table(trial_table(found)),
        markdown_table(importance_table(found)) if found.importance else markdown_escape(TOO_FEW),
        *(["## Further results", markdown_bullets(further)] if further else []),
        f"## {VALIDATION_TITLE}",
        markdown_bullets(findings(comparison)),
        *(markdown_table(device_text(table)) for table in comparison.tables),
        markdown_table(adapter_text(comparison.adapters)),
        markdown_table(settings_text(settings)),
        "## Methodology",
        markdown_bullets(METHODOLOGY),
    ]
    return "\n\n".join(parts) + "\n"
