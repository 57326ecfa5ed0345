"""Which layers of a deployed model cost its score."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, get_args

from torch import nn

from analog_grasp.crossbar.deployment import Deployment
from analog_grasp.crossbar.forward_hooks import computed_digitally

Alone = Literal["analog", "digital"]


def layer_sensitivity(
    deployment: Deployment, score: Callable[[nn.Module], float], alone: Alone = "analog"
) -> dict[str, float]:
    """The score with each layer alone on the chip, or each one alone taken off it.

    Args:
        deployment: A programmed chip, at the drift time that is meant.
        score: Scores a model.
        alone: ``"analog"``: one layer at a time computes on its tiles and all others digitally;
            ``"digital"``: one layer at a time computes digitally and all others on their tiles.

    Returns:
        The score for each layer, by its name in the base model.

    Raises:
        ValueError: An unknown ``alone``.

    Example:
        ``layer_sensitivity(deployment, task.evaluate)``
    """
    if alone not in get_args(Alone):
        raise ValueError(f"alone is {alone!r}, which is unknown: use analog or digital.")
    scores = {}
    for name, layer in deployment.layers.items():
        others = [other for other in deployment.layers.values() if other is not layer]
        with ExitStack() as stack:
            stack.enter_context(computed_digitally(others if alone == "analog" else [layer]))
            scores[name] = score(deployment.model)
    return scores
