"""How the D input features of a layer are shared out among K groups."""

from typing import Literal, get_args

import torch
from torch import Tensor

Grouping = Literal["contiguous", "strided"]


def group_index(features: int, groups: int, grouping: Grouping = "contiguous") -> Tensor:
    """Return the map g: {0..D-1} -> {0..K-1} of METHOD's ``x'_i = s[g(i)] x_i + b[g(i)]``.

    ``contiguous`` cuts the feature axis into K blocks; ``strided`` deals the features out in
    turn. Either way the sizes of two groups differ by at most one, so K need not divide D.

    Args:
        features: D, the number of input features of the layer.
        groups: K, the number of shared pairs, from 1 to D.
        grouping: ``"contiguous"`` or ``"strided"``.

    Returns:
        An int64 tensor of shape ``(D,)`` with values in 0..K-1.

    Raises:
        ValueError: K is below 1 or above D, or the grouping is unknown.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (contiguous blocks of the feature axis).

    Example:
        >>> group_index(7, 3).tolist()
        [0, 0, 0, 1, 1, 2, 2]
        >>> group_index(7, 3, "strided").tolist()
        [0, 1, 2, 0, 1, 2, 0]
    """
    if not 1 <= groups <= features:
        raise ValueError(
            f"groups is {groups}, but a layer of {features} input features takes "
            f"from 1 to {features} groups."
        )
    position = torch.arange(features)
    if grouping == "contiguous":
        return position * groups // features
    if grouping == "strided":
        return position % groups
    raise ValueError(
        f"grouping is {grouping!r}, which is unknown: use one of {', '.join(get_args(Grouping))}."
    )
