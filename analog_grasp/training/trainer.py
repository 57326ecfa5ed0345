"""Training one adapter: a transformers Trainer that knows the hardware."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput

from analog_grasp.adapters.config import StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear
from analog_grasp.tasks import Task, tokenizer_for
from analog_grasp.tasks.splits import tuning_task
from analog_grasp.training.converter_loop import ConverterLoop
from analog_grasp.training.evaluation import ChipEvaluation
from analog_grasp.training.loss import NoiseAwareLoss
from analog_grasp.training.weight_noise import WeightNoise
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import SHIFT_LR_RATIO


class AdapterTrainer(Trainer):
    """A `transformers.Trainer` that trains under what the hardware does to the weights.

    It adds the noise-aware loss, injects weight noise and reads through converters. Everything
    that Trainer takes is taken. Each process of a distributed training draws noise of its own, as
    each of the batches that accumulate one step does; the first draws as it would alone.

    Args:
        injection: The noise on the weights in training; see `WeightNoise`.
        converters: The card whose converters are in the loop; see `ConverterLoop`.
        chip: What an evaluation measures; Trainer's own loss on the evaluation rows where None.
        shift_lr_ratio: The learning rate of GRASP's shifts, in units of that of all else.
    """

    def __init__(
        self,
        *args: Any,
        injection: float | str = 0.0,
        converters: str | None = None,
        chip: ChipEvaluation | None = None,
        shift_lr_ratio: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.shift_lr_ratio = shift_lr_ratio
        # Our loss is a mean over the batch: Trainer itself must divide it among the batches that
        # accumulate one gradient step, which it leaves to models that take num_items_in_batch.
        self.model_accepts_loss_kwargs = False
        model = self.model
        assert isinstance(model, nn.Module)
        self.weight_noise = WeightNoise(model, injection)
        self._converted = ConverterLoop(model, converters).applied if converters else nullcontext
        self.chip = chip
        self.noise_aware_loss = _noise_aware_loss(model)
        torch.manual_seed(self.args.seed + self.args.process_index)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Trainer's own optimizer, with the shifts of GRASP in groups of their own."""
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            _scale_rate(optimizer, _shifts(model or self.model), self.shift_lr_ratio)
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass under one draw of the injected noise."""
        with self._converted(), self.weight_noise.applied():
            return super().training_step(*args, **kwargs)

    def evaluate(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """The scores on the chip, as Trainer names them: ``eval_accuracy``."""
        if self.chip is None:
            return super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        scores = self.chip.scores(self.model)
        found = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(
            self.args,
            self.state,
            self.control,  # type: ignore[has-type]
            found,
        )
        return found

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """``E_eps[L_task] + lambda R(sigma, sigma*)`` (METHOD 2)."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.noise_aware_loss is not None and model.training:
            loss = loss + self.noise_aware_loss()
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if type(sampler) is LengthGroupedSampler:
            # A step takes a batch from each process.
            step = sampler.batch_size * self.args.world_size
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return _ByLength(step, sampler.lengths, seed)
        return sampler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the adapter alone: its checkpoints need no tokenizer and no pickled arguments."""
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        self.model.save_pretrained(
            output_dir or self.args.output_dir,
            state_dict=state_dict,
            is_main_process=self.args.should_save,
            # Asking peft to find out would have it look at the Hub.
            save_embedding_layers=False,
        )


class _ByLength(LengthGroupedSampler):
    """Examples of like length together, in an order that the seed and the epoch alone decide.

    So a training that goes on in the midst of an epoch sees what it would have seen, and all
    processes agree on the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(derive_seed(self._seed, "order", epoch))


def train(
    model: PeftModel,
    task: Task,
    *,
    injection: float | str = 0.0,
    converters: str | None = None,
    evaluate_on: str | None = None,
    epochs: float = 3,
    learning_rate: float = 1e-2,
    shift_lr_ratio: float = SHIFT_LR_RATIO,
    batch_size: int = 32,
    seed: int = 0,
    dropout: bool = False,
    output_dir: str | Path | None = None,
    resume_from_checkpoint: bool | str = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> TrainOutput:
    """Train the active adapter and the task head of a PEFT model on a task.

    Under ``torchrun`` or ``accelerate launch`` every process calls it, each with its own copy of
    the model, and takes ``batch_size`` examples of each step; all copies end with the same
    adapter. On a CPU use ``torchrun``: the option ``--cpu`` of ``accelerate launch`` starts a
    single process, whatever the number that is asked for.

    Args:
        model: A model from `peft.get_peft_model`; trained in place, left in evaluation mode.
        task: What to learn.
        injection: Standard deviation of Gaussian noise on the weights that go onto tiles, in units
            of each column's largest weight, or a device at a drift time, ``"pcm-hermes-2@1d"``;
            drawn afresh for every batch. Frozen weights stay as they are, bit for bit.
        converters: A device whose DACs, ADCs and output noise the layers on tiles go through in
            training, with straight-through gradients; see `ConverterLoop`.
        evaluate_on: A device at a drift time, ``"pcm-hermes-2@1d"``: after every epoch the model
            is scored on a chip of it, and the best adapter is kept. The rows for that are held
            out from the training rows, as `tuning_task` does; the task's own validation rows are
            never looked at. With `transformers.EarlyStoppingCallback` training stops by it.
        epochs: Passes over the training set.
        learning_rate: The peak of a linear schedule with warm-up over a tenth of the steps.
        shift_lr_ratio: The learning rate of GRASP's shifts, in units of that of all else. A shift
            moves the features of its group alike whatever the input: at the full rate features
            run away on small tasks, until the model says the same of every sentence.
        batch_size: Examples a step.
        seed: Of the order of the examples, the samples, the noise, and the rows held out.
        dropout: Whether the pre-trained model's dropout acts; off unless asked for, as an adapter
            of a thousand numbers has little to overfit with.
        output_dir: Where checkpoints go, one an epoch or every ``save_steps`` steps; none are
            kept if left out.
        resume_from_checkpoint: Go on from the last checkpoint in `output_dir`, or from the one
            that is named. On the same machine with the same settings, training ends with the
            very bits that it would have ended with uninterrupted.
        callbacks: As `transformers.Trainer` takes them.
        arguments: Anything else that `transformers.TrainingArguments` takes, such as
            ``gradient_accumulation_steps``, ``bf16``, ``save_steps`` or ``eval_steps``.

    Returns:
        What `transformers.Trainer.train` returns: steps, mean loss and speed.

    Raises:
        ValueError: Nothing of the model is trainable; the injection is negative; the ratio is not
            above 0; a device or a time is unknown or has no converters; there is no checkpoint to
            go on from.

    Example:
        ``train(get_peft_model(base_model, GraspConfig(task_type="SEQ_CLS")), task, epochs=1)``
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "The model has nothing to train: wrap it with peft.get_peft_model and an adapter "
            "configuration, or load the adapter with is_trainable=True."
        )
    if not shift_lr_ratio > 0:
        raise ValueError(f"shift_lr_ratio is {shift_lr_ratio}: it must be above 0.")
    chip = None
    if evaluate_on is not None:
        task = tuning_task(task, seed)
        chip = ChipEvaluation(task, evaluate_on, seed)
    with tempfile.TemporaryDirectory() as scratch, _dropout(model, dropout):
        tokenizer = tokenizer_for(model)
        trainer = AdapterTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(output_dir or scratch),
                num_train_epochs=epochs,
                learning_rate=learning_rate,
                per_device_train_batch_size=batch_size,
                seed=seed,
                **_arguments(arguments, output_dir is not None, task.metrics[0] if chip else None),
            ),
            train_dataset=task.encode("train", tokenizer),
            eval_dataset=task.validation if chip else None,
            data_collator=task.collator(tokenizer),
            callbacks=list(callbacks),
            injection=injection,
            converters=converters,
            chip=chip,
            shift_lr_ratio=shift_lr_ratio,
        )
        # With its progress bar off, Trainer would print its statistics instead.
        trainer.remove_callback(PrinterCallback)
        try:
            return trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        finally:
            # Mixed precision has wrapped the forward pass.
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            model.eval()


def _arguments(given: dict[str, Any], kept: bool, metric: str | None) -> dict[str, Any]:
    """Our defaults of TrainingArguments, and over them those given.

    Args:
        given: As TrainingArguments names them.
        kept: Whether checkpoints are wanted for themselves.
        metric: What the best adapter is chosen by, if it is chosen.
    """
    every = "steps" if {"save_steps", "eval_steps"} & given.keys() else "epoch"
    defaults: dict[str, Any] = {
        "save_strategy": every if kept or metric else "no",
        "warmup_steps": 0.1,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        # Batches of like length hold little padding.
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
    }
    if metric:
        steps = given.get("eval_steps", given.get("save_steps"))
        defaults |= {
            "eval_strategy": every,
            "load_best_model_at_end": True,
            "metric_for_best_model": metric,
            "greater_is_better": True,
        } | ({} if steps is None else {"eval_steps": steps, "save_steps": steps})
        # The best one is among them whatever the limit.
        defaults |= {} if kept else {"save_total_limit": 1}
    return {**defaults, **given}


def _shifts(model: nn.Module) -> list[Tensor]:
    """The shifts of every GRASP adapter in a model."""
    layers = [module for module in model.modules() if isinstance(module, GraspLinear)]
    return [layer.means(name)[1] for layer in layers for name in layer.group_of]


def _scale_rate(optimizer: Optimizer, parameters: Sequence[Tensor], ratio: float) -> None:
    """Move parameters of an optimizer to groups with `ratio` times their learning rate."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in chosen]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            optimizer.add_param_group({**group, "params": moved, "lr": ratio * group["lr"]})


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
