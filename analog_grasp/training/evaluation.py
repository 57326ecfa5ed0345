"""What a model in training would score on a chip: by this, and not by its loss, it is chosen."""

from peft import PeftModel

from analog_grasp.adapters.registry import ADAPTERS, kind_of
from analog_grasp.crossbar import deploy
from analog_grasp.tasks import Task
from analog_grasp.training.loss import card_at_time
from analog_grasp.utils.seed import derive_seed


class ChipEvaluation:
    """The scores of a model on a programmed chip of a certain age.

    Every call programs the same chip instance, so that scores in the course of a training differ
    by the model alone. It is none of those that a study with the same seed measures on.

    Args:
        task: Whose validation rows are measured on; not those that a reported figure is of.
        where: A device card at a drift time, such as ``"pcm-hermes-2@1d"``.
        seed: Of the training.

    Raises:
        ValueError: The text names no card or no time.
    """

    def __init__(self, task: Task, where: str, seed: int) -> None:
        self._task = task
        self._card, self._seconds = card_at_time("evaluate_on", where)
        self._chip = derive_seed(seed, "evaluation") % 2**31

    def scores(self, model: PeftModel) -> dict[str, float]:
        """Every metric of the task by name, of a copy of the model on the chip.

        The adapter is digital where it can be, else programmed with the weights.

        Raises:
            ValueError: What the model computes is not finite.
        """
        kind = kind_of(model.active_peft_config)
        placement = ADAPTERS[kind].placements[0] if kind else "digital"
        deployment = deploy(model, self._card, placement=placement)
        deployment.program(self._chip).drift_to(self._seconds)
        # Mixed precision has wrapped the forward pass for training; a chip has none.
        vars(deployment.model).pop("forward", None)
        return self._task.scores(deployment.model)
