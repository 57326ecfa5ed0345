"""Checks of numbers that users give."""

import pytest

from analog_grasp.utils.errors import check_finite


@pytest.mark.parametrize("value", [True, "1", None, -1, float("nan"), float("inf"), 10**400])
def test_only_finite_numbers_from_zero_on_are_accepted(value):
    with pytest.raises(ValueError, match="a finite number from 0 on is accepted"):
        check_finite("rate", value)


def test_zero_is_accepted_unless_a_number_above_it_is_asked_for():
    check_finite("rate", 0)
    with pytest.raises(ValueError, match="rate is 0: a finite number above 0 is accepted"):
        check_finite("rate", 0, above=True)
