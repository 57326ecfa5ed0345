import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analog_grasp.adapters.layer import group_index


@given(st.integers(1, 200).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d))))
@pytest.mark.parametrize("grouping", ["contiguous", "strided"])
def test_every_group_is_used_and_sizes_differ_by_at_most_one(grouping, sizes):
    features, groups = sizes
    index = group_index(features, groups, grouping)
    counts = torch.bincount(index, minlength=groups)
    assert index.shape == (features,)
    assert len(counts) == groups
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1


def test_contiguous_groups_are_blocks():
    index = group_index(10, 4)
    assert (index.diff() >= 0).all()


@pytest.mark.parametrize("groups", [0, 9])
def test_more_groups_than_features_is_refused(groups):
    with pytest.raises(ValueError, match=f"groups is {groups}.*8 input features takes from 1 to 8"):
        group_index(8, groups)


def test_unknown_grouping_is_refused():
    with pytest.raises(ValueError, match=r"'random'.*contiguous, strided"):
        group_index(8, 2, "random")
