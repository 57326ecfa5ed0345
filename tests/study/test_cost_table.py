"""The costs of a study: costs.csv, its adapters and devices, and its report."""

import pytest

from analog_grasp.costs.table import read_costs
from analog_grasp.study.api import report
from analog_grasp.study.checks import check_costs
from analog_grasp.study.config import resolve


def test_costs_of_a_run(config, run_study, tmp_path):
    """One cost model per device; with another one, nothing is measured again."""
    asked = config.replace(repeats=1, times=("0s",), costs=("hermes-1phase", "neurram"), tiles=3)
    run_study(asked, tmp_path / "run")
    rows = read_costs(tmp_path / "run" / "costs.csv")
    columns = {(row.adapter, row.device, row.cost_model) for row in rows}
    assert columns == {
        (adapter, device, name)
        for adapter in ("grasp", "stochgrasp")
        for device, name in (("pcm-hermes-2", "hermes-1phase"), ("rram-wan2022", "neurram"))
    }
    shared = [row.value for row in rows if row.quantity == "tiles rewritten per batch"]
    assert all(shared)
    results = report(tmp_path / "run")
    assert {"costs.csv", "energy_by_part.pdf"} <= {path.name for path in results.files}
    run_study(asked.replace(costs=("ibm-34-tile",)), tmp_path / "run")
    again = read_costs(tmp_path / "run" / "costs.csv")
    assert {row.cost_model for row in again} == {"ibm-34-tile"}
    assert len(again) >= len(rows) - 4


def test_one_cost_model_or_one_per_device():
    check_costs(("neurram",), 3)
    check_costs(("neurram", "neurram"), 2)
    with pytest.raises(ValueError, match="names 2 cost models for 3 devices"):
        check_costs(("neurram", "neurram"), 3)
    with pytest.raises(ValueError, match="Unknown cost model 'pcm'"):
        check_costs(("pcm",), 1)


def test_tiles_without_costs_have_no_effect():
    with pytest.raises(ValueError, match="tiles is 3, which has no effect without costs"):
        resolve({"tiles": 3})
