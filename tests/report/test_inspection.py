"""Inspection of learned parameters, from made-up adapter folders, and the dip test."""

import csv
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from scipy.optimize import linprog

from analog_grasp.report.inspection import (
    ALL_LAYERS,
    MIN_VALUES,
    dip,
    dip_p_value,
    inspect_adapters,
    inspection_findings,
    inspection_tables,
    write_inspection,
)

ONE = np.linspace(0.9, 1.1, 16, dtype=np.float32)
TWO = np.concatenate([ONE - 3, ONE + 3])[::2].copy()


def save(folder, values, kind="GRASP", groups=16):
    """Saves an adapter with these values by the ends of their names."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "groups": groups}))
    tensors = {f"base_model.model.{name}": tensor for name, tensor in values.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def grasp(tmp_path):
    values = {
        f"bert.layer.{i}.query.grasp_{kind}": TWO if (i, kind) == (10, "scale") else ONE
        for i in (10, 2)
        for kind in ("scale", "shift")
    }
    return save(tmp_path / "grasp", values | {"classifier.weight": np.ones((2, 2), np.float32)})


@pytest.fixture
def stochgrasp(tmp_path):
    ends = ("scale", "shift", "scale_log_sigma", "shift_log_sigma")
    values = {f"bert.layer.2.query.stochgrasp_{end}": np.log(ONE) for end in ends}
    return save(tmp_path / "stochgrasp", values, "STOCHGRASP")


def test_modes_of_each_layer_are_tested(grasp):
    found = inspect_adapters([grasp])
    assert list(zip(found.parameter, found.layer, found.modes, strict=True)) == [
        ("scale", "bert.layer.2.query", "one"),
        ("scale", "bert.layer.10.query", "several"),
        ("scale", ALL_LAYERS, "several"),
        ("shift", "bert.layer.2.query", "one"),
        ("shift", "bert.layer.10.query", "one"),
        ("shift", ALL_LAYERS, "one"),
    ]
    assert found.p_holm[1] == 2 * found.p[1]
    assert inspection_findings(found)[0].startswith(
        "grasp, K = 16: the scale has several modes in 1 of 2 layers, and several over all"
    )


def test_sigmas_are_not_logarithms(stochgrasp):
    found = inspect_adapters([stochgrasp])
    samples = found[found.layer == ALL_LAYERS].set_index("parameter")["sample"]
    assert list(samples.index) == ["scale", "shift", "sigma of the scale", "sigma of the shift"]
    assert samples["sigma of the scale"] == pytest.approx(ONE, rel=1e-6)
    assert samples["scale"] == pytest.approx(np.log(ONE), rel=1e-6)


def test_adapters_are_columns(grasp, stochgrasp):
    shown = inspection_tables(inspect_adapters([grasp, stochgrasp]))
    assert [table.title for table in shown][2:] == ["sigma of the scale", "sigma of the shift"]
    assert shown[0].columns == ("layer", "grasp, K = 16", "stochgrasp, K = 16")
    cells = {label: entries for label, *entries in shown[0].rows}
    assert list(cells)[-1] == ALL_LAYERS
    assert cells["bert.layer.10.query"][0].endswith("†")
    assert cells["bert.layer.10.query"][1] == "-"


def test_folders_of_one_name_are_labelled_by_path(tmp_path):
    values = {"a.grasp_scale": ONE, "a.grasp_shift": ONE}
    first, second = (save(tmp_path / run / "grasp", values) for run in ("one", "two"))
    names = set(inspect_adapters([first, second]).adapter)
    assert names == {f"{first}, K = 16", f"{second}, K = 16"}
    third = save(tmp_path / "three" / "grasp", values, groups=4)
    assert set(inspect_adapters([first, third]).adapter) == {"grasp, K = 16", "grasp, K = 4"}
    with pytest.raises(ValueError, match="given more than once"):
        inspect_adapters([first, first])


def test_files_have_the_tables_and_the_same_bytes_twice(grasp, stochgrasp, tmp_path):
    found = inspect_adapters([grasp, stochgrasp])
    paths = write_inspection(found, tmp_path / "out")
    assert [path.name for path in paths] == [
        f"inspection.{end}" for end in ("csv", "md", "png", "svg", "pdf")
    ]
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["p_holm"]) for row in rows] == found.p_holm.tolist()
    assert rows[1]["modes"] == "several"
    assert float(rows[1]["max"]) == pytest.approx(float(TWO.max()))
    page = paths[1].read_text()
    assert page.count("\n| all layers ") == 4
    assert all(path.stat().st_size > 1000 for path in paths[2:])
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_inspection(found, tmp_path / "out")] == before


def test_invalid_adapters_are_errors_of_one_sentence(grasp, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter: expected adapter_config"):
        inspect_adapters([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"type LORA, .*: use a GRASP or StochGRASP adapter\."):
        inspect_adapters([save(tmp_path / "lora", {}, "LORA")])
    bare = save(tmp_path / "bare", {"classifier.weight": ONE})
    with pytest.raises(ValueError, match=r"holds no scales: train the adapter again\."):
        inspect_adapters([bare])
    (grasp / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(ValueError, match=r"is damaged .*: train the adapter again\."):
        inspect_adapters([grasp])
    (grasp / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"not a valid adapter configuration .* again\."):
        inspect_adapters([grasp])
    wrong = save(tmp_path / "wrong", {"a.grasp_scale": np.array([1.0, np.nan], np.float32)})
    with pytest.raises(ValueError, match=r"a\.grasp_scale that are not finite"):
        inspect_adapters([wrong])


def nearest_with_one_mode(x: np.ndarray) -> float:
    """Returns the dip by its definition: for every place of the mode, a linear programme."""
    n = len(x)
    best = 1.0
    for mode in range(n):
        # Unknown are the distribution at every point and the distance.
        rows, limits = [], []
        for i in range(n):
            for side, limit in ((-1.0, -(i + 1) / n), (1.0, i / n)):
                row = np.zeros(n + 1)
                row[i], row[-1] = side, -1.0
                rows.append(row)
                limits.append(limit)
        for (i, j), k in zip(pairwise(range(n)), range(2, n), strict=False):
            slopes = np.zeros(n + 1)
            slopes[[i, j]] = [-1.0 / (x[j] - x[i]), 1.0 / (x[j] - x[i])]
            slopes[j] += 1.0 / (x[k] - x[j])
            slopes[k] = -1.0 / (x[k] - x[j])
            if j != mode:
                rows.append(slopes if j < mode else -slopes)
                limits.append(0.0)
        for i, j in pairwise(range(n)):
            row = np.zeros(n + 1)
            row[[i, j]] = 1.0, -1.0
            rows.append(row)
            limits.append(0.0)
        cost = np.zeros(n + 1)
        cost[-1] = 1.0
        found = linprog(cost, rows, limits, bounds=[(0, 1)] * (n + 1))
        if found.success:
            best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_dip_is_the_distance_to_the_nearest_distribution_with_one_mode(seed):
    draw = np.random.default_rng(seed)
    x = np.sort(draw.random(9) + 2.0 * (draw.random(9) < 0.5))
    assert dip(x) == pytest.approx(nearest_with_one_mode(x), abs=1e-6)


FLOATS = st.floats(-100, 100).map(lambda value: round(value, 3))


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(1, 30), elements=FLOATS))
def test_dip_lies_within_its_bounds_in_any_order(x):
    assert 1 / (2 * len(x)) <= dip(x) <= max(0.25, 1 / (2 * len(x)))
    assert dip(x[::-1]) == dip(x)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.integers(4, 20), elements=FLOATS, unique=True))
def test_dip_does_not_depend_on_direction_or_unit(x):
    assert dip(-x) == pytest.approx(dip(x))
    assert dip(4.0 * x) == pytest.approx(dip(x))


def test_few_or_equal_values_have_one_mode():
    assert dip_p_value(np.arange(MIN_VALUES - 1.0)) == 1.0
    assert dip_p_value(np.ones(16)) == 1.0


def test_p_values_of_a_uniform_sample_are_uniform():
    draw = np.random.default_rng(0)
    p = np.array([dip_p_value(draw.random(16)) for _ in range(400)])
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p < 0.5).mean() == pytest.approx(0.5, abs=0.08)


def test_two_modes_are_found():
    two = np.concatenate([np.linspace(-1.1, -0.9, 8), np.linspace(0.9, 1.1, 8)])
    assert dip_p_value(two) < 0.001
    assert dip_p_value(np.repeat(two, 20)) < 0.001


def test_an_adapter_in_half_precision_is_read(grasp, tmp_path):
    half = shutil.copytree(grasp, tmp_path / "half")
    weights = half / "adapter_model.safetensors"
    tensors = load_torch(weights)
    save_torch({name: tensor.bfloat16() for name, tensor in tensors.items()}, weights)
    found, exact = (inspect_adapters([folder]) for folder in (half, grasp))
    assert found["mean"].to_numpy() == pytest.approx(exact["mean"].to_numpy(), rel=1e-2, abs=1e-2)


def test_the_default_k_is_that_of_the_largest_layer(tmp_path):
    values = {"a.grasp_scale": ONE[:8].copy(), "b.grasp_scale": ONE, "c.weight": np.ones(99)}
    found = inspect_adapters([save(tmp_path / "grasp", values, groups=None)])
    assert set(found.adapter) == {"grasp, K = 16"}
