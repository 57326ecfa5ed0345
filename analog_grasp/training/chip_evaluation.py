"""Scores of a model in training on a programmed chip."""

from collections.abc import Callable, Mapping

from torch import nn

from analog_grasp.adapters.registry import ADAPTERS, kind_of
from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.devices.card import DeviceAtTime
from analog_grasp.tasks import Task
from analog_grasp.utils.seed import derive_seed


class ChipEvaluation:
    """The scores of a model in training on one programmed chip at one age.

    Every call programs the same chip instance, so that scores during a training differ by the
    model alone. The instance differs from those of a study with the same seed.

    Args:
        task: The task whose validation rows are measured; not those of a reported figure.
        where: A device at a drift time, such as ``"pcm-hermes-2@1d"``.
        seed: The seed of the training.
        put_on_chip: Maps the model to tiles, given it, the card and `placement`.

    Raises:
        ValueError: The device or the time is unknown.
    """

    def __init__(
        self,
        task: Task,
        where: str | DeviceAtTime,
        seed: int,
        put_on_chip: Callable[..., Deployment] = deploy,
    ) -> None:
        self._task, self._put_on_chip = task, put_on_chip
        self._card, self._seconds = DeviceAtTime.parse(where)
        self._chip = derive_seed(seed, "evaluation") % 2**31

    def scores(
        self, model: nn.Module, input_ranges: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Return every metric of the task for a copy of the model on the chip.

        The adapter is digital where its method allows that, else folded.

        Args:
            model: The digital model.
            input_ranges: The DAC's range of each layer, by name; None for the card's scaling.

        Raises:
            ValueError: The model's output is not finite.
        """
        kind = kind_of(model)
        placement = ADAPTERS[kind].placements[0] if kind else "digital"
        # Mixed precision wraps the forward pass in training; the chip has no such wrapper.
        wrapper = vars(model).pop("forward", None)
        try:
            deployment = self._put_on_chip(model, self._card, placement=placement)
        finally:
            if wrapper is not None:
                vars(model)["forward"] = wrapper
        deployment.program(self._chip).drift_to(self._seconds)
        if input_ranges is not None and deployment.card.converters is not None:
            deployment.set_input_ranges(input_ranges)
        return self._task.scores(deployment.model)
