"""Hardware-aware training of one adapter, by a transformers Trainer."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput

from analog_grasp.adapters.frozen import LayerPattern
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.adapters.registry import own_learning_rate
from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.devices.ages import Ages, parse_ages
from analog_grasp.devices.card import Device, DeviceAtTime
from analog_grasp.tasks import Task
from analog_grasp.tasks.base import tuning_task
from analog_grasp.training.adapter_parameters import check_adapter, check_enabled
from analog_grasp.training.adapter_trainer import AdapterTrainer
from analog_grasp.training.chip_evaluation import ChipEvaluation
from analog_grasp.training.distillation import STEPS, distil
from analog_grasp.training.input_ranges import LearnedRanges
from analog_grasp.training.loss import check_schedules
from analog_grasp.training.teacher_checks import check_teacher
from analog_grasp.training.weight_noise import parse_injection
from analog_grasp.utils.errors import check_finite, check_whole
from analog_grasp.utils.types import EPOCHS, SHIFT_LR_RATIO, Schedule


def train(
    model: PeftModel,
    task: Task,
    *,
    injection: float | Ages = 0.0,
    converters: Device | None = None,
    learn_ranges: bool = False,
    layers: LayerPattern = "all-linear",
    evaluate_on: str | DeviceAtTime | None = None,
    put_on_chip: Callable[..., Deployment] | None = None,
    teacher: nn.Module | None = None,
    then: Ages | None = None,
    then_steps: int | None = None,
    epochs: float = EPOCHS,
    learning_rate: float | None = None,
    shift_lr_ratio: float = SHIFT_LR_RATIO,
    sigma_lr_ratio: float = 1.0,
    noise_weight_schedule: Schedule = "constant",
    noise_target_schedule: Schedule = "constant",
    batch_size: int = 32,
    seed: int = 0,
    dropout: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output_dir: str | Path | None = None,
    resume_from_checkpoint: bool | str = False,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> TrainOutput:
    """Train the active adapter and the task head of a PEFT model on a task.

    Under ``torchrun`` or ``accelerate launch`` every process calls it with its own copy of the
    model and takes ``batch_size`` examples of each step; all copies end with the same adapter. On
    a CPU use ``torchrun``: ``accelerate launch --cpu`` starts a single process.

    Args:
        model: A model from `peft.get_peft_model`; trained in place and left in evaluation mode.
        task: The task to learn.
        injection: Standard deviation of Gaussian noise on the weights that are deployed on tiles,
            in units of each column's largest weight, or devices at drift times, such as
            ``"pcm-hermes-2@1d"`` or ``"pcm-hermes-2@1h..1y"``; see `WeightNoise`. Drawn for every
            batch; frozen weights stay bit-equal.
        converters: A device whose DACs, ADCs and output noise the layers go through in training,
            with straight-through gradients; see `ConverterLoop`.
        learn_ranges: Give the DAC of each layer a fixed input range, learned with decay as in
            `LearnedRanges`, instead of the scaling of the card. The result is
            ``model.input_ranges``, by layer, which `Deployment.set_input_ranges` takes and
            checkpoints hold; requires `converters`.
        layers: The layers that will be on tiles, as for `deploy`: those that receive noise and
            converters in training and that are on the simulated chips.
        evaluate_on: A device at a drift time, such as ``"pcm-hermes-2@1d"``. After every epoch
            the model is scored on a chip of that device, on rows held out from the training split
            by `tuning_task`, and the best adapter is kept. The validation split is not used. Works
            with `transformers.EarlyStoppingCallback`.
        put_on_chip: Maps the model to tiles for `evaluate_on` and `then` as it will be deployed,
            given the model, a card and arguments of `deploy`; `deploy` on `layers` if None.
        teacher: A digital transformers or PEFT model with the same task head, such as one that was
            trained whole. Its outputs, in evaluation mode and without noise, replace the labels:
            the loss is the Kullback-Leibler divergence from them, or the squared error of a
            regression relative to their variance. Left in evaluation mode, where the model is.
        then: Devices at ranges of ages, such as ``"pcm-hermes-2@0s..1y"``: after the task is
            learned, the adapter is distilled on simulated chips of these from its own digital
            outputs, at the learning rates of the first stage; see `distil`.
        then_steps: Steps of this second stage; by default 300.
        epochs: Number of epochs.
        learning_rate: Peak of a linear schedule with warm-up over a tenth of the steps; if None,
            that of the adapter's method in `ADAPTERS`, or of GRASP for other methods. Modules that
            are trained whole learn at 0.001 at most, but for the output layer of the task head: at
            GRASP's rate a hidden layer of the head can collapse to a constant prediction.
        shift_lr_ratio: Learning rate of GRASP's shifts relative to that of all other parameters,
            for layers whose inputs have a root mean square of 1; multiplied by that of the layer
            on the first training rows. A shift adds to the inputs, whose root mean square is
            0.03 to 0.8 in the models measured: one rate for all makes small ones collapse to a
            constant prediction.
        sigma_lr_ratio: Learning rate of StochGRASP's standard deviations (of their logarithms)
            relative to that of all other parameters.
        noise_weight_schedule: ``"linear"`` raises the weight of StochGRASP's noise-aware loss over
            the training, from 0.
        noise_target_schedule: ``"linear"`` raises its noise target, from 1 % of it.
        batch_size: Examples per step and process.
        seed: Seed of the order of the examples, the samples, the noise and the rows held out.
        dropout: Enable the pre-trained model's dropout; that of the adapter, such as LoRA's, is as
            its configuration says.
        tokenizer: Tokenizer of the texts, for example one with added tokens; if None, the task's or
            the model's own.
        output_dir: Folder for checkpoints, one per epoch or every ``save_steps`` steps; none are
            kept if None.
        resume_from_checkpoint: Resume from the last checkpoint in `output_dir`, or from the one
            named. With the same settings on the same machine, the result is bit-equal to that of
            an uninterrupted training.
        callbacks: As in `transformers.Trainer`.
        arguments: Further `transformers.TrainingArguments`, such as
            ``gradient_accumulation_steps``, ``bf16``, ``save_steps``, ``eval_steps`` or
            ``logging_steps``.

    Returns:
        The output of `transformers.Trainer.train`: steps, mean loss and speed.

    Raises:
        ValueError: The model is deployed, or has no trainable parameter; `injection` is negative or
            not finite; `epochs`, a learning rate or a ratio of them is not above 0; a schedule is
            unknown; `batch_size` or `then_steps` is below 1; an argument has no effect without
            another one, such as `then_steps` without `then`; `layers` matches no layer; a device or
            a time is unknown, or a range of times reversed; `converters` names a device without
            converters, or is missing with `learn_ranges`; `then` is given for a model without an
            adapter; the model has another number of outputs than the task; the teacher has another
            vocabulary or task head; there is no checkpoint to resume from.

    Source:
        docs/method.md, "Analog deployment".

    Example:
        ``train(get_peft_model(base_model, GraspConfig(task_type="SEQ_CLS")), task, epochs=1)``
    """
    if "forward_hooks" in vars(model):
        raise ValueError(
            "The model is on a chip, where its frozen weights give no gradient: train the digital "
            "model and deploy it, or fit its adapter to the chip by recalibrate."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "The model has no trainable parameter: wrap it with peft.get_peft_model, or load its "
            "adapter with is_trainable=True."
        )
    check_enabled(model)
    if learn_ranges and converters is None:
        raise ValueError("learn_ranges requires converters, a device whose DACs have the ranges.")
    check_finite("epochs", epochs, above=True)
    check_finite("shift_lr_ratio", shift_lr_ratio, above=True)
    check_finite("sigma_lr_ratio", sigma_lr_ratio, above=True)
    check_schedules(noise_weight_schedule, noise_target_schedule)
    check_whole("batch_size", batch_size)
    if then_steps is not None:
        check_whole("then_steps", then_steps)
    kept = output_dir is not None
    _check_effect("then_steps", then_steps, "then", then)
    _check_effect("eval_steps", arguments.get("eval_steps"), "evaluate_on", evaluate_on)
    saved = evaluate_on if output_dir is None else output_dir
    _check_effect("save_steps", arguments.get("save_steps"), "output_dir or evaluate_on", saved)
    if teacher is not None and arguments.get("label_smoothing_factor"):
        raise ValueError("label_smoothing_factor has no effect with a teacher: omit one of them.")
    _check_own(
        model,
        {
            "shift_lr_ratio": (shift_lr_ratio, SHIFT_LR_RATIO, GraspLinear),
            "sigma_lr_ratio": (sigma_lr_ratio, 1.0, StochGraspLinear),
            "noise_weight_schedule": (noise_weight_schedule, "constant", StochGraspLinear),
            "noise_target_schedule": (noise_target_schedule, "constant", StochGraspLinear),
        },
    )
    injection = parse_injection(injection)
    put_on_chip = put_on_chip or partial(deploy, layers=layers)
    if then is not None:
        then = parse_ages(then)
        check_adapter(model)
    if learning_rate is None:
        learning_rate = own_learning_rate(model)
    check_finite("learning_rate", learning_rate, above=True)
    if tokenizer is not None:
        task = replace(task, tokenizer=tokenizer)
    if teacher is not None:
        check_teacher(teacher, model, task)
    chip, whole = None, task
    if evaluate_on is not None:
        task = tuning_task(task, seed)
        chip = ChipEvaluation(task, evaluate_on, seed, put_on_chip)
    with tempfile.TemporaryDirectory() as scratch, _dropout(model, dropout):
        tokenizer = task.tokenizer_of(model)
        trainer = AdapterTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(output_dir or scratch),
                num_train_epochs=epochs,
                learning_rate=learning_rate,
                per_device_train_batch_size=batch_size,
                seed=seed,
                **_arguments(arguments, kept, task if chip else None),
            ),
            train_dataset=task.training_rows(model, tokenizer),
            eval_dataset=task.validation if chip else None,
            data_collator=task.collator(tokenizer),
            callbacks=list(callbacks),
            injection=injection,
            converters=converters,
            learn_ranges=learn_ranges,
            layers=layers,
            chip=chip,
            shift_lr_ratio=shift_lr_ratio,
            sigma_lr_ratio=sigma_lr_ratio,
            noise_weight_schedule=noise_weight_schedule,
            noise_target_schedule=noise_target_schedule,
            teacher=teacher,
        )
        # Without a progress bar Trainer would print its statistics.
        trainer.remove_callback(PrinterCallback)
        try:
            output = trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        finally:
            # Mixed precision wraps the forward pass.
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            model.eval()
    if output.global_step == 1 and trainer.args.get_warmup_steps(1):
        warnings.warn(
            f"The training of {task.name} had one step, whose learning rate is 0 (warm-up), so "
            "that nothing was learned: train for more epochs, on more rows, or in smaller batches.",
            stacklevel=2,
        )
    # Those of an earlier training belong to the adapter that it left.
    model.__dict__.pop("input_ranges", None)
    if trainer.ranges is not None:
        model.__dict__["input_ranges"] = trainer.ranges.values()
    if then is not None:
        distil(
            model, whole, then, steps=then_steps or STEPS, learning_rate=learning_rate,
            shift_lr_ratio=shift_lr_ratio, seed=seed,
            put_on_chip=partial(_on_chip, put_on_chip, trainer.ranges),
        )  # fmt: skip
    return output


def _on_chip(
    put_on_chip: Callable[..., Deployment],
    ranges: LearnedRanges | None,
    *args: Any,
    **arguments: Any,
) -> Deployment:
    """Return a deployment with the learned input ranges, if there are any."""
    deployment = put_on_chip(*args, **arguments)
    if ranges is not None and deployment.card.converters is not None:
        deployment.set_input_ranges(ranges.values())
    return deployment


def _check_effect(name: str, value: object, other: str, present: object) -> None:
    """Raise ValueError where an argument is given without the other one that it depends on."""
    if value is not None and present is None:
        raise ValueError(
            f"{name} is {value!r}, which has no effect without {other}: give {other}, or omit it."
        )


def _check_own(
    model: nn.Module, given: Mapping[str, tuple[object, object, type[nn.Module]]]
) -> None:
    """Raise ValueError where a value is not its default and the model has no layer of its kind."""
    for name, (value, default, kind) in given.items():
        if value != default and not any(isinstance(each, kind) for each in model.modules()):
            methods = "StochGRASP" if kind is StochGraspLinear else "GRASP and StochGRASP"
            raise ValueError(
                f"{name} is {value!r}, which has no effect on this adapter: it applies to "
                f"{methods}; omit it."
            )


def _arguments(given: dict[str, Any], kept: bool, task: Task | None) -> dict[str, Any]:
    """Return the given TrainingArguments, completed by the defaults of this package.

    Args:
        given: Arguments by the names of TrainingArguments.
        kept: Keep the checkpoints after the training.
        task: The task by whose primary metric the best adapter is chosen; None to keep the last
            one.
    """
    every = "steps" if {"save_steps", "eval_steps"} & given.keys() else "epoch"
    logged = {"logging_steps", "logging_first_step"} & given.keys()
    defaults: dict[str, Any] = {
        "save_strategy": every if kept or task else "no",
        "warmup_steps": 0.1,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps" if logged else "no",
        # Batches of similar length hold little padding.
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
    }
    if task:
        steps = given.get("eval_steps", given.get("save_steps"))
        defaults |= {
            "eval_strategy": every,
            "load_best_model_at_end": True,
            "metric_for_best_model": task.metrics[0],
            "greater_is_better": task.greater_is_better,
        } | ({} if steps is None else {"eval_steps": steps, "save_steps": steps})
        # The best checkpoint is kept whatever the limit.
        defaults |= {} if kept else {"save_total_limit": 1}
    return {**defaults, **given}


@contextmanager
def _dropout(model: nn.Module, on: bool) -> Iterator[None]:
    """Disable the pre-trained model's dropout within the block, unless `on`."""
    rates = [] if on else _dropout_rates(model)
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)


def _dropout_rates(model: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """Return each dropout rate of a pre-trained model as its module, attribute and value."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    adapters = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]
    own = {module for layer in adapters for module in layer.modules()}
    own -= {module for layer in adapters for module in layer.get_base_layer().modules()}
    return [
        (module, name, value)
        for module in base.modules()
        if module not in own
        for name, value in vars(module).items()
        # Some models, such as OPT and BART, have no modules of dropout, but rates.
        if isinstance(value, float) and ("drop" in name or isinstance(module, _DropoutNd))
    ]
