"""What is shown of a tuning, from trials made up so that every figure is known."""

import base64
import csv
import io
import json
import re

import pytest

from analog_grasp.report.tuning import (
    Trials,
    importance_table,
    trial_table,
    trials_csv,
    tuning_findings,
    tuning_markdown,
)
from analog_grasp.report.tuning_figures import _Axis, write_figures
from analog_grasp.report.tuning_page import tuning_page
from analog_grasp.tuning.objective import WORSE, Trial
from analog_grasp.tuning.search_space import search_space

LEVELS = (("pcm", 0.0), ("pcm", 86_400.0), ("rram", 0.0), ("rram", 86_400.0))


def trial(number, noise_weight, score, digital, given_up="", chips=2) -> Trial:
    """Scores that differ between chips by 0.02."""
    cells = {level: [score - 0.01, score + 0.01][:chips] for level in LEVELS}
    whole = None if given_up else score
    return Trial(number, {"noise_weight": noise_weight}, whole, digital, cells, 3.5, given_up)


def shown(*trials: Trial, front, multi=False, **changed) -> Trials:
    found = {
        "task": "reviews",
        "metric": "accuracy",
        "space": search_space(["noise_weight"]),
        "given": {"noise_weight": 1.0},
        "trials": trials,
        "front": front,
        "multi": multi,
        "importance": {"score": {"noise_weight": 1.0}},
    }
    return Trials(**found | changed)


@pytest.fixture
def found() -> Trials:
    best = trial(2, 0.1, 0.84, 0.87)
    return shown(
        trial(0, 1.0, 0.80, 0.88),
        trial(1, 0.0, 0.70, 0.86),
        best,
        trial(3, 50.0, 0.5, 0.6, WORSE, chips=1),
        trial(5, 99.0, 0.5, None, "A logit is NaN.", chips=0),
        front=[best],
    )


def test_csv_has_a_row_a_trial_and_a_column_a_level(found):
    rows = list(csv.DictReader(io.StringIO(trials_csv(found))))
    assert list(rows[0]) == [
        "number", "noise_weight", "score", "digital", "seconds", "given_up",
        "pcm@0s", "pcm@1d", "rram@0s", "rram@1d",
    ]  # fmt: skip
    assert [row["number"] for row in rows] == ["0", "1", "2", "3", "5"]
    assert float(rows[2]["rram@1d"]) == pytest.approx(0.84)
    assert float(rows[3]["pcm@0s"]) == pytest.approx(0.49)
    assert (rows[3]["score"], rows[3]["given_up"]) == ("", WORSE)
    assert (rows[4]["digital"], rows[4]["pcm@0s"]) == ("", "")


def test_findings_hold_the_best_against_what_was_given(found):
    assert tuning_findings(found) == [
        "The best of 3 measured trials has noise_weight 0.1: accuracy 84.0 % after drift and "
        "87.0 % digital (reviews, on held-out training data).",
        "The settings as given (noise_weight 1) give 80.0 after drift; the best setting is ahead "
        "by 4 ±0 points on the same 2 chip instances of each device.",
        "The settings without the noise-aware loss (noise_weight 0) give 70.0 after drift; the "
        "best setting is ahead by 14 ±0 points on the same 2 chip instances of each device.",
        f"1 of 5 trials was given up as {WORSE}.",
        "Trial 5 (noise_weight 99) failed: A logit is NaN.",
    ]


def test_the_difference_has_the_interval_of_the_chips():
    best = trial(1, 0.1, 0.84, 0.87)
    given = Trial(
        0, {"noise_weight": 1.0}, 0.8, 0.8, {level: [0.8, 0.8] for level in LEVELS}, 1.0, ""
    )
    # By chip +3 and +5 points: a standard error of 1, times Student's 12.706.
    assert "ahead by 4 ±13 points" in tuning_findings(shown(given, best, front=[best]))[1]


def test_nothing_is_compared_with_itself():
    best = trial(0, 1.0, 0.84, 0.87)
    assert len(tuning_findings(shown(best, front=[best]))) == 1


def test_table_has_the_best_trials_first(found):
    table = trial_table(found)
    assert [row.label for row in table.rows] == ["2", "0", "1"]
    assert [cell.text for cell in table.rows[0].cells] == ["0.1", "84.0", "87.0"]


def test_table_of_two_goals_has_the_front():
    trials = [trial(0, 1.0, 0.8, 0.9), trial(1, 0.0, 0.7, 0.7), trial(2, 2.0, 0.7, 0.95)]
    found = shown(*trials, front=[trials[0], trials[2]], multi=True)
    assert [row.label for row in trial_table(found).rows] == ["0", "2"]
    assert "2 trials are on the front" in " ".join(tuning_findings(found))


def test_importance_has_a_column_a_goal(found):
    assert importance_table(found).columns == ("setting", "after drift")
    both = {"score": {"noise_weight": 1.0}, "digital": {"noise_weight": 1.0}}
    two = shown(*found.trials, front=found.front, multi=True, importance=both)
    assert importance_table(two).columns == ("setting", "after drift", "digital")
    assert importance_table(two).rows[0].cells[1].text == "100%"


def test_summary_names_its_figures_and_says_what_is_too_little(found):
    text = tuning_markdown(found, {"seed": 0}, [], [])
    assert "(accuracy_vs_noise_weight.svg)" in text
    assert "front.svg" not in text
    few = shown(*found.trials, front=found.front, importance={})
    assert "too few measured trials" in tuning_markdown(few, {}, [], [])


def test_figures_are_the_same_bytes_again(found, tmp_path):
    drawn = shown(*found.trials, front=found.front, multi=True)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    first, second = (write_figures(drawn, tmp_path / name) for name in ("a", "b"))
    stems = ("accuracy_vs_noise_weight", "front")
    names = [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")]
    assert [path.name for path in first] == names
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("multi", [False, True])
def test_the_page_holds_every_whole_trial_and_the_data(found, measurements, records, multi):
    page = tuning_page(
        shown(*found.trials, front=found.front, multi=multi), {"seed": 0}, measurements, records
    )
    (chart,) = json.loads(re.search(r'id="charts">(.*?)</script>', page)[1])
    drawn = str(chart)
    for trial in found.trials:
        settings = f"'noise_weight {trial.values['noise_weight']:g}'"
        assert (settings in drawn) == (trial.score is not None)
    data = re.search(r'download="trials.csv" href="data:text/csv;base64,([^"]*)"', page)[1]
    assert base64.b64decode(data).decode() == trials_csv(found)
    assert ("joined by a line" in page) == multi


def test_zero_stands_beyond_a_break_and_words_nowhere(found):
    axis = _Axis(found, "noise_weight")
    assert axis.of(found.trials[2]) == pytest.approx(-1)
    assert axis.is_broken_off(axis.of(found.trials[1]))
    assert not axis.is_broken_off(axis.of(found.trials[0]))
    # The search was 0.001 to 100.
    assert axis.of(found.trials[1]) < -3
    named = Trial(0, {"noise_target": "pcm-hermes-2@1d"}, 0.8, 0.8, {}, 1.0, "")
    numbered = Trial(1, {"noise_target": 0.1}, 0.8, 0.8, {}, 1.0, "")
    space = search_space(["noise_target"])
    axis = _Axis(shown(named, numbered, front=[named], space=space), "noise_target")
    assert (axis.of(named), axis.of(numbered)) == (None, -1)
