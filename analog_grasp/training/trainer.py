"""Training one adapter: a transformers Trainer with the noise-aware loss and injected noise."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput

from analog_grasp.adapters.config import StochGraspConfig
from analog_grasp.tasks import Task, tokenizer_for
from analog_grasp.training.injection import WeightNoise
from analog_grasp.training.objective import NoiseAwareLoss


class AdapterTrainer(Trainer):
    """A `transformers.Trainer` that adds the noise-aware loss and injects weight noise.

    Everything that Trainer takes is taken; evaluation is untouched.

    Args:
        injection: The noise on the weights in training; see `WeightNoise`.
    """

    def __init__(self, *args: Any, injection: float | str = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Our loss is a mean over the batch: Trainer itself must divide it among the batches that
        # accumulate one gradient step, which it leaves to models that take num_items_in_batch.
        self.model_accepts_loss_kwargs = False
        model = self.model
        assert isinstance(model, nn.Module)
        self.weight_noise = WeightNoise(model, injection)
        self.noise_aware_loss = _noise_aware_loss(model)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass under one draw of the injected noise."""
        with self.weight_noise.applied():
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """``E_eps[L_task] + lambda R(sigma, sigma*)`` (METHOD 2)."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.noise_aware_loss is not None and model.training:
            loss = loss + self.noise_aware_loss()
        return (loss, outputs) if return_outputs else loss


def train(
    model: PeftModel,
    task: Task,
    *,
    injection: float | str = 0.0,
    epochs: float = 3,
    learning_rate: float = 1e-2,
    batch_size: int = 32,
    seed: int = 0,
    dropout: bool = False,
    output_dir: str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> TrainOutput:
    """Train the active adapter and the task head of a PEFT model on a task.

    Args:
        model: A model from `peft.get_peft_model`; trained in place, left in evaluation mode.
        task: What to learn.
        injection: Standard deviation of Gaussian noise on the weights that go onto tiles, in units
            of each column's largest weight, or a device at a drift time, ``"pcm-hermes-2@1d"``;
            drawn afresh for every batch. Frozen weights stay as they are, bit for bit.
        epochs: Passes over the training set.
        learning_rate: The peak of a linear schedule with warm-up over a tenth of the steps.
        batch_size: Examples a step.
        seed: Of the order of the examples, the samples and the noise.
        dropout: Whether the pre-trained model's dropout acts; off unless asked for, as an adapter
            of a thousand numbers has little to overfit with.
        output_dir: Where checkpoints go; none are written if left out.
        callbacks: As `transformers.Trainer` takes them.
        arguments: Anything else that `transformers.TrainingArguments` takes.

    Returns:
        What `transformers.Trainer.train` returns: steps, mean loss and speed.

    Raises:
        ValueError: Nothing of the model is trainable, or the injection is negative or names no
            device and time.

    Example:
        ``train(get_peft_model(base_model, GraspConfig(task_type="SEQ_CLS")), task, epochs=1)``
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "The model has nothing to train: wrap it with peft.get_peft_model and an adapter "
            "configuration, or load the adapter with is_trainable=True."
        )
    with tempfile.TemporaryDirectory() as scratch, _dropout(model, dropout):
        tokenizer = tokenizer_for(model)
        settings: dict[str, Any] = {
            "save_strategy": "no" if output_dir is None else "epoch",
            "warmup_steps": 0.1,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
            # Batches of like length hold little padding.
            "train_sampling_strategy": "group_by_length",
            "dataloader_pin_memory": torch.cuda.is_available(),
            **arguments,
        }
        trainer = AdapterTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(output_dir or scratch),
                num_train_epochs=epochs,
                learning_rate=learning_rate,
                per_device_train_batch_size=batch_size,
                seed=seed,
                **settings,
            ),
            train_dataset=task.encode("train", tokenizer),
            data_collator=task.collator(tokenizer),
            callbacks=list(callbacks),
            injection=injection,
        )
        # With its progress bar off, Trainer would print its statistics instead.
        trainer.remove_callback(PrinterCallback)
        try:
            return trainer.train()
        finally:
            model.eval()


@contextmanager
def _dropout(model: nn.Module, on: bool) -> Iterator[None]:
    """Within the block the model's dropout acts as it is, or not at all."""
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    rates = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = layer.p if on else 0.0
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate


def _noise_aware_loss(model: nn.Module) -> NoiseAwareLoss | None:
    """The loss term of the active adapter, where it is a StochGRASP one that asks for it."""
    if not isinstance(model, PeftModel):
        return None
    config = model.active_peft_config
    if not isinstance(config, StochGraspConfig) or config.noise_weight == 0:
        return None
    return NoiseAwareLoss(model, config, model.active_adapter)
