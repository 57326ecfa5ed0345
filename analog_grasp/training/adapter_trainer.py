"""A transformers Trainer with weight noise, converters and the noise-aware loss."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput

from analog_grasp.adapters.config import StochGraspConfig
from analog_grasp.adapters.frozen import LayerPattern
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.adapters.model import modulated_layers
from analog_grasp.devices.ages import Ages
from analog_grasp.devices.card import Device
from analog_grasp.training.chip_evaluation import ChipEvaluation
from analog_grasp.training.converter_loop import ConverterLoop
from analog_grasp.training.distillation import Teacher
from analog_grasp.training.examples import count_of
from analog_grasp.training.input_ranges import (
    LearnedRanges,
    load_ranges,
    mean_over_processes,
    save_ranges,
)
from analog_grasp.training.learning_rates import SIZE_ROWS, input_sizes, one_output, rate_factors
from analog_grasp.training.loss import NoiseAwareLoss
from analog_grasp.training.weight_noise import WeightNoise
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import Schedule

# Learning rate of the logarithms of the input ranges.
_RANGE_RATE = 0.01


class AdapterTrainer(Trainer):
    """A `transformers.Trainer` with weight noise, converters and the noise-aware loss.

    Takes every argument of Trainer and those below. Each process of a distributed training and
    each of the batches that are accumulated for a step draws its own noise; the first process
    draws what a single process would.

    Args:
        injection: The noise on the weights in training; see `WeightNoise`.
        converters: The device whose converters are in the loop; see `ConverterLoop`.
        learn_ranges: Learn the input range of each layer's converters.
        layers: The layers on tiles, which receive both.
        chip: The chip that evaluations are made on; Trainer's own evaluation if None.
        shift_lr_ratio: Learning rate of GRASP's shifts relative to that of all other parameters,
            for layers whose inputs have a root mean square of 1; see `train`.
        sigma_lr_ratio: Learning rate of StochGRASP's standard deviations relative to the others.
        noise_weight_schedule, noise_target_schedule: See `NoiseAwareLoss`.
        teacher: A digital model whose outputs are learned in place of the labels; see `train`.
    """

    def __init__(
        self,
        *args: Any,
        injection: float | Ages = 0.0,
        converters: Device | None = None,
        learn_ranges: bool = False,
        layers: LayerPattern = "all-linear",
        chip: ChipEvaluation | None = None,
        shift_lr_ratio: float = 1.0,
        sigma_lr_ratio: float = 1.0,
        noise_weight_schedule: Schedule = "constant",
        noise_target_schedule: Schedule = "constant",
        teacher: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.optimizer is not None:
            _check_defaults(learn_ranges, shift_lr_ratio, sigma_lr_ratio)
        self.shift_lr_ratio, self.sigma_lr_ratio = shift_lr_ratio, sigma_lr_ratio
        # The loss is a mean over the batch, so Trainer must divide it by the accumulation steps.
        # It does not for models that take num_items_in_batch.
        self.model_accepts_loss_kwargs = False
        model = self.model
        assert isinstance(model, nn.Module)
        # Products in bfloat16 are exact enough beside noise alone.
        reduced = converters is None and injection != 0 and bool(layers)
        self.weight_noise = WeightNoise(model, injection, layers, reduced=reduced)
        self._loop = ConverterLoop(model, converters, layers, learn_ranges) if converters else None
        self.ranges = self._loop.ranges if self._loop else None
        self.chip = chip
        # In evaluation mode, and none of the modules that receive noise.
        self.teacher = (
            None if teacher is None else Teacher(teacher.to(self.args.device).eval(), 0.0)
        )
        schedules = noise_weight_schedule, noise_target_schedule
        self.noise_aware_loss = _noise_aware_loss(model, *schedules)
        self._stochastic = [m for m in model.modules() if isinstance(m, StochGraspLinear)]
        torch.manual_seed(self.args.seed + self.args.process_index)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Return Trainer's optimizer, with own rates of some parameters; see `train`."""
        if self.optimizer is None:
            model = model or self.model
            optimizer = super().create_optimizer(model)
            if self.args.weight_decay:
                # Scales rest at 1 and standard deviations at their target, not at 0.
                own = [
                    parameter
                    for _, layer in modulated_layers(model)
                    for kind in layer.adapter_layer_names
                    for parameter in getattr(layer, kind).values()
                ]
                _regroup(optimizer, own, weight_decay=0.0)
            sizes = input_sizes(model, partial(self._run_first_rows, model))
            rates = self.args.learning_rate, self.shift_lr_ratio
            for parameter, factor in rate_factors(model, sizes, *rates).items():
                _regroup(optimizer, [parameter], factor)
            sigmas = [
                parameter
                for layer in self._stochastic
                for kind in layer.adapter_layer_names[2:]
                for parameter in getattr(layer, kind).values()
            ]
            _regroup(optimizer, sigmas, self.sigma_lr_ratio)
            if self.ranges is not None:
                self._learn(self.ranges, optimizer, model)
        return self.optimizer

    def _learn(self, ranges: LearnedRanges, optimizer: Optimizer, model: nn.Module) -> None:
        """Begin the input ranges and let the optimizer of the model learn them."""
        assert self._loop is not None
        self._loop.begin(partial(self._run_first_rows, model))
        ranges.log.register_hook(mean_over_processes)
        optimizer.add_param_group({"params": [ranges.log], "lr": _RANGE_RATE, "weight_decay": 0.0})

        def decay(*_: object) -> None:
            ranges.add_decay()

        # Once per step, whatever the number of batches and processes.
        optimizer.register_step_pre_hook(decay)
        self.add_callback(_ClearedRanges(ranges))

    def _run_first_rows(self, model: nn.Module) -> None:
        """Run a model on the first training rows, the same in every process."""
        rows = self.train_dataset
        assert rows is not None
        few = [rows[row] for row in range(min(SIZE_ROWS, len(rows)))]
        batch, mode = self._prepare_inputs(self.data_collator(few)), model.training
        if options := one_output(model):
            # The loss takes the logits of all tokens.
            batch.pop("labels", None)
        with torch.no_grad():
            model.eval()(**batch, **options)
        model.train(mode)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Run one forward and backward pass under one draw of the injected noise."""
        converters = self._loop.applied() if self._loop else nullcontext()
        try:
            self._set_examples(inputs)
            with converters, self.weight_noise.applied():
                return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._set_examples(None)

    def _set_examples(self, inputs: dict[str, Any] | None) -> None:
        """Set the number of examples of which the layers draw samples."""
        for layer in self._stochastic:
            layer.examples = count_of(inputs) if inputs else None

    def evaluate(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """Return the scores on the chip under Trainer's names, such as ``eval_accuracy``."""
        if self.chip is None:
            return super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        scores = self.chip.scores(self.model, self.ranges.values() if self.ranges else None)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args,
            self.state,
            self.control,  # type: ignore[has-type]
            metrics,
        )
        return metrics

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return ``E_eps[L_task] + lambda R(sigma, sigma*)``; see `NoiseAwareLoss`.

        With a teacher L_task is the distance from its outputs; see `Teacher.loss`.
        """
        if self.teacher is not None and model.training:
            loss, outputs = self.teacher.loss(model, inputs), None
        else:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.noise_aware_loss is not None and model.training:
            # The state of a resumed training has its step.
            progress = (self.state.global_step + 1) / self.state.max_steps
            loss = loss + self.noise_aware_loss(progress)
        if self._stochastic and model.training:
            # Accumulation and mixed precision scale the loss, which its gradient shows.
            loss.register_hook(self._set_loss_scale)
        return (loss, outputs) if return_outputs else loss

    def _set_loss_scale(self, scale: Tensor | float) -> None:
        """Set the factor by which the loss is multiplied before its backward pass."""
        for layer in self._stochastic:
            layer.loss_scale = scale

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if type(sampler) is LengthGroupedSampler:
            # One step takes a batch from every process.
            step = sampler.batch_size * self.args.world_size
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return _OrderedByLength(step, sampler.lengths, seed)
        return sampler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._restore_ranges(checkpoint)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, after which all processes have the parameters and ranges of the first."""
        try:
            output = super().train(*args, **kwargs)
        finally:
            self._set_loss_scale(1.0)
        assert isinstance(self.model, nn.Module)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        learned += [] if self.ranges is None else [self.ranges.log]
        if self.args.world_size > 1:
            for parameter in learned:
                torch.distributed.broadcast(parameter.data, 0)
        return output

    def _load_best_model(self) -> None:
        # Checkpoints can be in a folder of the first process alone; see `train`.
        if not self.is_world_process_zero():
            return
        best, model = self.state.best_model_checkpoint, self.model
        if isinstance(model, PeftModel) and best is not None:
            # Trainer expects the adapter of any name where PEFT saves the one named default.
            name = model.active_adapter
            folder = Path(best) if name == "default" else Path(best) / name
            model.load_adapter(folder, name, is_trainable=True)
        else:
            super()._load_best_model()
        self._restore_ranges(best)

    def _restore_ranges(self, checkpoint: str | None) -> None:
        if self.ranges is not None and checkpoint is not None:
            self.ranges.restore(load_ranges(checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the adapter and its ranges alone, without a tokenizer and pickled arguments."""
        if self.ranges is not None and self.args.should_save:
            save_ranges(self.ranges.values(), output_dir or self.args.output_dir or ".")
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        self.model.save_pretrained(
            output_dir or self.args.output_dir,
            state_dict=state_dict,
            is_main_process=self.args.should_save,
            # The default makes peft query the Hub.
            save_embedding_layers=False,
        )


class _OrderedByLength(LengthGroupedSampler):
    """Batches of examples of similar length, in an order given by the seed and the epoch.

    A training resumed within an epoch therefore sees the same batches, and all processes agree on
    the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(derive_seed(self._seed, "order", epoch))


class _ClearedRanges(TrainerCallback):
    """Clears the gradient of input ranges after each step; Trainer clears those of its model.

    An optimizer's own hook does not run after a step that mixed precision skips.
    """

    def __init__(self, ranges: LearnedRanges) -> None:
        self._ranges = ranges

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._ranges.clear()


def _check_defaults(learn_ranges: bool, *ratios: float) -> None:
    """Raise ValueError where a setting of the optimizer is given together with an optimizer."""
    names = "learn_ranges", "shift_lr_ratio", "sigma_lr_ratio"
    for name, value, default in zip(names, (learn_ranges, *ratios), (False, 1.0, 1.0), strict=True):
        if value != default:
            raise ValueError(
                f"{name} is {value!r}, which has no effect on an optimizer that is given: omit it, "
                "or the optimizer."
            )


def _regroup(
    optimizer: Optimizer, parameters: Sequence[Tensor], ratio: float = 1.0, **settings: float
) -> None:
    """Move parameters to groups with `ratio` times their learning rate and other settings."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in chosen]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            changed = {"params": moved, "lr": ratio * group["lr"]} | settings
            optimizer.add_param_group(group | changed)


def _noise_aware_loss(model: nn.Module, *schedules: Schedule) -> NoiseAwareLoss | None:
    """Return the loss of an active StochGRASP adapter with a positive weight, else None."""
    if not isinstance(model, PeftModel):
        return None
    config = model.active_peft_config
    if not isinstance(config, StochGraspConfig) or config.noise_weight == 0:
        return None
    return NoiseAwareLoss(model, config, model.active_adapter, *schedules)
