"""Report of a tuning, from made-up trials."""

import base64
import csv
import io
import math
import random
import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from analog_grasp.report.tables import Comparison
from analog_grasp.report.tuning import (
    effect_sentence,
    importance_table,
    setting_effects,
    trial_table,
    trials_csv,
    tuning_findings,
    tuning_report,
)
from analog_grasp.report.tuning_figures import setting_places, write_setting
from analog_grasp.tuning.search_space import WORSE, Trial, Trials, search_space

LEVELS = (("pcm", 0.0), ("pcm", 86_400.0), ("rram", 0.0), ("rram", 86_400.0))


def trial(number, noise_weight, score, digital, pruned="", chips=2) -> Trial:
    """Returns a trial whose scores differ between chips by 0.02."""
    cells = {level: [score - 0.01, score + 0.01][:chips] for level in LEVELS}
    complete = None if pruned else score
    return Trial(number, {"noise_weight": noise_weight}, complete, digital, cells, 3.5, pruned)


def trials_of(*trials: Trial, front, multi=False, **changed) -> Trials:
    given = {
        "task": "reviews",
        "metric": "accuracy",
        "space": search_space(["noise_weight"]),
        "given": {"noise_weight": 1.0},
        "trials": trials,
        "front": front,
        "multi": multi,
        "importance": {"score": {"noise_weight": 1.0}},
    }
    return Trials(**given | changed)


@pytest.fixture
def found() -> Trials:
    best = trial(2, 0.1, 0.84, 0.87)
    return trials_of(
        trial(0, 1.0, 0.80, 0.88),
        trial(1, 0.0, 0.70, 0.86),
        best,
        trial(3, 50.0, 0.5, 0.6, WORSE, chips=1),
        trial(5, 99.0, 0.5, None, "A logit is NaN.", chips=0),
        front=[best],
    )


def test_csv_has_a_row_per_trial_and_a_column_per_level(found):
    rows = list(csv.DictReader(io.StringIO(trials_csv(found))))
    assert list(rows[0]) == [
        "number", "noise_weight", "score", "digital", "seconds", "pruned",
        "pcm@0s", "pcm@1d", "rram@0s", "rram@1d",
    ]  # fmt: skip
    assert [row["number"] for row in rows] == ["0", "1", "2", "3", "5"]
    assert float(rows[2]["rram@1d"]) == pytest.approx(0.84)
    assert float(rows[3]["pcm@0s"]) == pytest.approx(0.49)
    assert (rows[3]["score"], rows[3]["pruned"]) == ("", WORSE)
    assert (rows[4]["digital"], rows[4]["pcm@0s"]) == ("", "")


def test_findings_compare_the_best_setting_with_the_requested_one(found):
    assert tuning_findings(found) == [
        "The best of 3 complete trials has noise_weight 0.1: accuracy 84.0 % after drift and "
        "87.0 % digital (reviews, on held-out training data).",
        "The setting as requested (noise_weight 1) has 80.0 % after drift; the difference of "
        "the best setting is +4 points on the same 2 chip instances of each device.",
        "The setting without the noise-aware loss (noise_weight 0) has 70.0 % after drift; the "
        "difference of the best setting is +14 points on the same 2 chip instances of each "
        "device.",
        f"1 of 5 trials was pruned: {WORSE}.",
        "Trial 5 (noise_weight 99) failed: A logit is NaN.",
    ]


def test_the_difference_has_the_interval_over_chips():
    best = trial(1, 0.1, 0.84, 0.87)
    given = Trial(
        0, {"noise_weight": 1.0}, 0.8, 0.8, {level: [0.8, 0.8] for level in LEVELS}, 1.0, ""
    )
    # By chip +3 and +5 points: a standard error of 1, times Student's 12.706.
    assert "is +4 ±13 points" in tuning_findings(trials_of(given, best, front=[best]))[1]
    # The best setting is not compared with itself.
    assert len(tuning_findings(trials_of(given, front=[given]))) == 1


def test_tables_have_the_best_trials_or_the_front_and_a_column_per_goal(found):
    table = trial_table(found)
    assert [row[0] for row in table.rows] == ["2", "0", "1"]
    assert table.rows[0][1:] == ("0.1", "84.0", "87.0")
    assert importance_table(found).columns == ("setting", "after drift")
    trials = [trial(0, 1.0, 0.8, 0.9), trial(1, 0.0, 0.7, 0.7), trial(2, 2.0, 0.7, 0.95)]
    importance = {"score": {"noise_weight": 1.0}, "digital": {"noise_weight": 1.0}}
    front = [trials[0], trials[2]]
    two = trials_of(*trials, front=front, multi=True, importance=importance)
    assert [row[0] for row in trial_table(two).rows] == ["0", "2"]
    assert "2 trials are on the Pareto front" in " ".join(tuning_findings(two))
    assert importance_table(two).columns == ("setting", "after drift", "digital")
    assert importance_table(two).rows[0][2] == "100%"
    one = trials_of(*trials, front=front[:1], multi=True)
    assert "1 trial is on the Pareto front" in " ".join(tuning_findings(one))


def test_the_best_trials_of_a_perplexity_are_the_lowest(found):
    table = trial_table(replace(found, metric="perplexity"))
    assert [row[0] for row in table.rows] == ["1", "0", "2"]


def test_equal_scores_have_no_importance(measurements):
    trials = [trial(0, 1.0, 0.8, 0.9), trial(1, 0.0, 0.8, 0.7), trial(2, 2.0, 0.4, 0.9, WORSE)]
    importance = {"score": {"noise_weight": 1.0}, "digital": {"noise_weight": 1.0}}
    two = trials_of(*trials, front=trials[:1], multi=True, importance=importance)
    assert importance_table(two).columns == ("setting", "digital")
    one = trials_of(*trials, front=trials[:1])
    assert importance_table(one).rows == []
    summary = tuning_report(one, {}, Comparison(measurements)).summary()
    assert "Importance of the settings" not in summary
    assert "too few complete trials" not in summary


def test_a_score_that_is_no_fraction_has_no_unit():
    best, given = trial(1, 0.1, 8.4, 8.7), trial(0, 1.0, 8.0, 8.7)
    sentences = tuning_findings(trials_of(given, best, front=[best], metric="nist"))
    assert "has 8.000 after drift; the difference of the best setting is +0.4 on" in sentences[1]


def test_summary_has_the_figures_and_the_missing_importance(found, measurements):
    text = tuning_report(found, {"seed": 0}, Comparison(measurements)).summary()
    assert "(accuracy_vs_noise_weight.svg)" in text
    assert "front.svg" in text
    few = trials_of(*found.trials, front=found.front, importance={})
    report = tuning_report(few, {}, Comparison(measurements))
    assert "too few complete trials" in report.summary()


def test_files_have_the_same_bytes_twice(found, measurements, tmp_path):
    drawn = trials_of(*found.trials, front=found.front, multi=True)
    report = tuning_report(drawn, {"seed": 0}, Comparison(measurements))
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    first, second = (report.write(tmp_path / name) for name in ("a", "b"))
    stems = ("accuracy_vs_noise_weight", "front")
    figures = [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")]
    assert [path.name for path in first] == ["summary.md", *figures, "report.html"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("multi", [False, True])
def test_the_page_has_every_complete_trial_and_the_data(found, measurements, records, multi):
    shown = trials_of(*found.trials, front=found.front, multi=multi)
    page = tuning_report(shown, {"seed": 0}, Comparison(measurements, records)).page()
    for number, text in {0: "noise_weight 1: 80.0", 1: "noise_weight 0: 70.0", 2: "noise"}.items():
        assert page.count(f'aria-label="trial {number}, {text}') == 1
    assert page.count('aria-label="trial ') == 3
    data = re.search(r'download="trials.csv" href="data:text/csv;base64,([^"]*)"', page)[1]
    assert base64.b64decode(data).decode() == trials_csv(found)
    assert ("Pareto front" in page) == multi


def test_zero_is_drawn_beyond_a_break_and_text_is_not_drawn(found):
    places = setting_places(found, "noise_weight")
    assert places[0.1] == pytest.approx(-1)
    # The search was 0.001 to 100.
    assert places[0.0] < places[0.001] == -3
    named = Trial(0, {"noise_target": "pcm-hermes-2@1d"}, 0.8, 0.8, {}, 1.0, "")
    numbered = Trial(1, {"noise_target": 0.1}, 0.8, 0.8, {}, 1.0, "")
    space = search_space(["noise_target"])
    places = setting_places(trials_of(named, numbered, front=[named], space=space), "noise_target")
    assert list(places) == [0.1, 0.01, 0.5]


def many_trials(score):
    """Return trials over four decades, whose scores on two chips follow a formula."""
    weights = [10 ** (power / 4) for power in range(-8, 9)]
    found = []
    for number, weight in enumerate(weights):
        cells = {
            level: [score(weight, level, number) + chip for chip in (-0.01, 0.01)]
            for level in LEVELS
        }
        found.append(Trial(number, {"noise_weight": weight}, 0.8, 0.8, cells, 1.0, ""))
    return trials_of(*found, front=found[:1])


def test_a_setting_that_matters_at_some_noise_levels_is_reported():
    def score(weight, level, number):
        drop = 0.02 * math.log10(weight) if level == ("pcm", 86_400.0) else 0.0
        return 0.8 - drop + 0.002 * (number % 3 - 1)

    found = many_trials(score)
    effects = {effect.level: effect for effect in setting_effects(found, "noise_weight")}
    assert effects["pcm", 86_400.0].span == pytest.approx(0.08, abs=0.004)
    matters = [level for level, effect in effects.items() if effect.p_value < 0.05]
    assert matters == [("pcm", 86_400.0)]
    sentence = effect_sentence(found, "noise_weight")
    assert sentence.startswith(
        "The score depends on noise_weight from 0.01 to 100 at 1 of 4 noise levels ("
    )
    assert re.search(
        r" points at pcm@1d\); no dependence was found at the others \(largest fitted effect "
        r"0\.\d points\)\.$",
        sentence,
    )
    assert sentence in tuning_findings(found)


def test_a_setting_without_a_significant_effect_is_reported_with_the_largest_fitted_one():
    chance = random.Random(0)
    found = many_trials(lambda *_: 0.8 + chance.gauss(0, 0.01))
    sentence = effect_sentence(found, "noise_weight")
    largest = max(effect.span for effect in setting_effects(found, "noise_weight"))
    assert sentence == (
        "No dependence of the score on noise_weight from 0.01 to 100 was found at any of 4 noise "
        f"levels: the largest fitted effect is {100 * largest:.1f} points, which is not "
        "significant."
    )


def test_pruned_trials_count_on_the_chips_that_they_have():
    found = many_trials(lambda weight, level, number: 0.8 - 0.02 * math.log10(weight))
    pruned = [
        Trial(t.number, t.values, None, t.digital, {k: v[:1] for k, v in t.cells.items()}, 1.0, "x")
        if t.values["noise_weight"] > 10
        else t
        for t in found.trials
    ]
    effects = setting_effects(trials_of(*pruned, front=found.front), "noise_weight")
    assert effects == setting_effects(found, "noise_weight")
    assert setting_effects(trials_of(*pruned[:5], front=found.front), "noise_weight") == []


def test_a_narrow_range_has_its_ends_as_ticks(found, measurements, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    space = search_space(["noise_weight"], {"noise_weight": (0.2, 0.8)})
    trials = [trial(0, 0.3, 0.8, 0.8), trial(1, 0.5, 0.7, 0.8)]
    write_setting(trials_of(*trials, front=trials[:1], space=space), "noise_weight", tmp_path / "a")
    labels = [label.get_text() for label in drawn[-1].axes[0].get_xticklabels()]
    assert labels == ["0.2", "0.8"]


def test_the_files_of_a_metric_of_lm_eval_are_in_the_folder(found, measurements):
    shown = trials_of(*found.trials, front=found.front, metric="arc_easy/acc")
    text = tuning_report(shown, {"seed": 0}, Comparison(measurements)).summary()
    assert "(arc_easy_acc_vs_noise_weight.svg)" in text


def test_a_requested_setting_whose_trial_failed_is_not_called_worse():
    best = trial(1, 0.1, 0.84, 0.87)
    failed = trial(0, 1.0, 0.5, None, "A logit is NaN.", chips=0)
    sentences = tuning_findings(trials_of(failed, best, front=[best]))
    assert any(s.endswith("(noise_weight 1) has no score: its trial failed.") for s in sentences)
