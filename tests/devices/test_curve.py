"""Curves: NumPy arrays and tensors, measured points, reciprocals, and invalid pieces."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from analog_grasp.devices.fields import Curve, Piece, StdCurve

PIECES = [
    {"form": "polynomial", "coefficients": [0.3]},
    {"form": "polynomial", "coefficients": [0.3] * 9 + [-0.2, 0.1], "max": 1.5},
    {"form": "logarithm", "coefficients": [1.0, 0.2], "min": 0.4},
    {"form": "power", "coefficients": [0.8, -0.5]},
    {"form": "saturation", "coefficients": [0.9, 0.4]},
    {"form": "reciprocal", "coefficients": [30.03, 8.0]},
    {"form": "points", "points": [[0.1, 0.2], [0.3, 1.0], [0.8, 0.5]]},
]
X = np.linspace(0.0, 1.2, 1001)


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece["form"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_arrays_and_tensors_give_the_same_values(piece, dtype):
    curve = Curve(variable="u", pieces=[{"below": 0.05, **PIECES[0]}, piece])
    tensor = curve.at(torch.from_numpy(-2.0 * X).to(dtype), 2.0)
    assert tensor.dtype == dtype
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(tensor.numpy(), curve.at(-2.0 * X, 2.0), **tolerance)


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece["form"])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
def test_scaled_multiplies_the_values(piece, factor):
    piece = Piece.model_validate(piece)
    np.testing.assert_allclose(piece.scaled(factor)(X), factor * piece(X), rtol=1e-12, atol=1e-12)


def test_points_are_interpolated_linearly_and_constant_outside():
    x, y = np.sort(np.random.default_rng(0).random(400)), np.random.default_rng(1).random(400)
    piece = Piece(form="points", points=np.stack([x, y], 1).tolist())
    np.testing.assert_allclose(piece(X), np.interp(X, x, y), rtol=1e-12)
    np.testing.assert_allclose(piece(torch.from_numpy(X)).numpy(), np.interp(X, x, y), rtol=1e-12)


def test_constant_stds_are_recognised():
    data = {"variable": "u", "unit": "uS", "form": "polynomial", "reference_g_max": "10 uS"}
    assert StdCurve(**data, coefficients=[0.2]).constant(20.0) == 0.4
    assert StdCurve(**data, coefficients=[0.2, 0.1]).constant(20.0) is None


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        ({"form": "points"}, 'has the form "points" but no points'),
        ({"form": "polynomial"}, 'has the form "polynomial" but no coefficients'),
        ({"form": "points", "points": [[1, 2]]}, "at least 2 items"),
        ({"form": "points", "points": [[1, 2], [1, 3]]}, "ascending values of x"),
        ({"form": "points", "coefficients": [1]}, 'does not belong to the form "points"'),
        ({"form": "power", "points": [[1, 2], [2, 3]]}, "a power has coefficients"),
        ({"form": "reciprocal", "coefficients": [0, 1]}, "c0 above 0"),
        ({"form": "reciprocal", "coefficients": [1, -1]}, "c1 at least 0"),
        ({"form": "points", "points": [[i, 0] for i in range(10_001)]}, "at most 10000 items"),
    ],
)
def test_invalid_pieces_are_errors(piece, words):
    with pytest.raises(ValidationError, match=words):
        Piece.model_validate(piece)
