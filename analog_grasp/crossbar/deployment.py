"""Deployment: a model whose frozen weights are on a simulated chip that ages."""

import copy
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn

from analog_grasp.crossbar import mapping, saving
from analog_grasp.crossbar.chip_layer import ChipLayer, computed_digitally
from analog_grasp.crossbar.deployment_report import (
    DeploymentReport,
    LayerReport,
    digital_modules,
)
from analog_grasp.crossbar.forward_hooks import ChipState, ForwardHooks, hooks_of
from analog_grasp.crossbar.mapping import RangeRule
from analog_grasp.crossbar.programmed_adapter import ProgrammedModulation, put_into_devices
from analog_grasp.crossbar.tile_sets import (
    DeploymentSettings,
    TileSets,
    check_adapter,
    copy_sharing_frozen,
)
from analog_grasp.crossbar.write_tolerance import write_tolerances
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.time import parse_time


class Deployment:
    """A chip with the frozen weights of a model, and the model that computes with it.

    Made by `deploy`. One integer names a chip instance: the same seed gives the same conductances,
    drift and read noise, whatever else runs and in whichever order drift times are visited. With
    ``tile="rpucuda"`` read noise, also that of the drift compensation's read-out, is not seeded.

    Attributes:
        model: The deployed copy. The noise of its forward passes comes from the chip's own seed;
            the caller's random state does not change.
        card: The device, without the effects that are switched off.
        placement: Placement of the adapter.
        dtype: The type in which weights on tiles are stored.
        layers: The layers on tiles, by their names in the base model.
        on_drift: Functions that `program` and `drift_to` call with the new age, s; see
            `AgeSchedule.follow`.

    Example:
        >>> from analog_grasp import deploy
        >>> from transformers import BertConfig, BertModel
        >>> tiny_bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, vocab_size=10,
        ...                       num_attention_heads=2, intermediate_size=16))
        >>> deployment = deploy(tiny_bert, "pcm-hermes-2")
        >>> deployment.program(seed=0).drift_to("1d").time_s
        86400.0
    """

    def __init__(
        self, model: nn.Module, settings: DeploymentSettings, shared: Mapping[str, Tensor]
    ) -> None:
        self.card, self.placement = settings.card, settings.placement
        self.dtype = settings.dtype
        self.on_drift: list[Callable[[float], object]] = []
        self._settings = settings
        self._chip = ChipState()
        self._tiles = TileSets(settings)
        self._tiles.put_into(model)
        self.layers: dict[str, ChipLayer] = self._tiles.layers
        self._adapters: list[ProgrammedModulation | ChipLayer] = []
        self.model = self._finish(model, shared)

    @property
    def seed(self) -> int | None:
        """The chip instance; None before `program`."""
        return self._chip.seed

    @property
    def time_s(self) -> float:
        """Seconds since programming finished."""
        return self._chip.time_s

    def program(self, seed: int = 0) -> "Deployment":
        """Program the weights onto a chip instance, and return the deployment; the time is 0 s.

        Args:
            seed: The chip instance, any integer.

        Raises:
            ValueError: The seed is not an integer.
            RuntimeError: A frozen weight was changed in place since the deployment.
        """
        seed = _checked_seed(seed)
        with torch.inference_mode(False), torch.no_grad():
            for part in (*self.layers.values(), *self._adapters):
                part.program(seed)
        self._chip.seed = seed
        return self._aged(0.0)

    def drift_to(self, time: str | float) -> "Deployment":
        """Age the chip to a time since programming, and return the deployment.

        Args:
            time: Such as ``"0s"``, ``"30d"``, ``"1y"``, or seconds; any order gives the same bits,
                up to the unseeded noise of ``tile="rpucuda"``.

        Raises:
            ValueError: The text is not a time, or the time is negative.
            RuntimeError: The chip has not been programmed.
        """
        seconds = parse_time(time)
        if self.seed is None:
            raise RuntimeError("The chip is not programmed: call program(seed) before drift_to.")
        with torch.inference_mode(False), torch.no_grad():
            for part in (*self.layers.values(), *self._adapters):
                part.drift_to(seconds)
        return self._aged(seconds)

    def _aged(self, seconds: float) -> "Deployment":
        self._chip.time_s = seconds
        self._chip.changes += 1
        for follow in self.on_drift:
            follow(seconds)
        return self

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Let a block program and age the chip, which is as before afterwards.

        The noise of forward passes begins again, as after `drift_to`.
        """
        seed, seconds = self.seed, self.time_s
        followers, self.on_drift = self.on_drift, []
        try:
            yield
        finally:
            if seed is None:
                for part in (*self.layers.values(), *self._adapters):
                    part.erase()
                self._aged(0.0)
                self._chip.seed = None
            else:
                self.program(seed).drift_to(seconds)
            self.on_drift = followers

    @torch.inference_mode(False)
    def attach(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model with another adapter that computes on the tiles of this chip.

        The frozen weights are programmed once and adapters take turns, as on a multi-task chip, so
        that differences between adapters are paired.

        Raises:
            ValueError: Its frozen layers differ from those of the chip, the adapter cannot be
                placed so, or the placement is ``"folded"``.
        """
        if self.placement == "folded":
            raise ValueError(
                "placement is 'folded', which merges the adapter into the weights that are "
                "programmed, so that no other adapter shares the chip: deploy the model separately."
            )
        check_adapter(model, self.placement)
        saving.check_whole(model)
        other, shared = copy_sharing_frozen(model, self._settings.layers)
        self._tiles.put_into(other)
        return self._finish(other, shared)

    def copy_model(self, model: nn.Module, own: Collection[str]) -> nn.Module:
        """Return a copy of a model on this chip, with parameters of its own by the names in `own`.

        All others are shared with `model`, which is ``self.model`` or a model from `attach`.
        """
        shared: dict[int, object] = {
            id(parameter): parameter
            for name, parameter in model.named_parameters()
            if name not in own
        }
        shared |= {id(part): part for part in (*self.layers.values(), self._chip)}
        copied = copy.deepcopy(model, shared)
        # Its noise depends on its own passes alone.
        hooks_of(copied).restart()
        return copied

    def calibrate(
        self,
        observe: Callable[[nn.Module], object],
        percentile: RangeRule = 100.0,
        model: nn.Module | None = None,
    ) -> dict[str, float]:
        """Set the DAC's input range of every layer from the inputs that the model has on data.

        The matrices of a programmed LoRA are layers too, such as ``dense.A``. All of these layers
        compute digitally meanwhile; a programmed GRASP adapter computes with its devices.

        Args:
            observe: Runs a model on data, such as
                ``lambda model: task.subset(train=64).scores(model, "train")``.
            percentile: Of the magnitudes of a layer's inputs, 100 for the largest; or
                ``"least-error"``, the range with the least mean squared error of the DAC.
            model: The attached model whose ranges are set; by default ``self.model``.

        Returns:
            The range of each layer, by name, used until the next call or rescaling; inputs beyond
            are clipped. Output ranges are dropped, as they belong to the earlier input ranges.

        Raises:
            ValueError: The percentile is not above 0 and at most 100, the card has no converters or
                for ``"least-error"`` an exact DAC, or the tiles are aihwkit's; ranges are then as
                before.
        """
        self._check_input_ranges()
        chosen = self.model if model is None else model
        hooks = hooks_of(chosen)
        # Ranges have no effect on digital passes, and stay as they are if one fails.
        with hooks.first_passes():
            ranges = mapping.observed_ranges(
                self.card, hooks.layers, lambda: observe(chosen), percentile
            )
        hooks.set_ranges(ranges, {})
        return ranges

    def set_input_ranges(
        self, ranges: Mapping[str, float], model: nn.Module | None = None
    ) -> "Deployment":
        """Set the DAC's input range of layers, such as those learned in training.

        Args:
            ranges: By the names of layers, as from `calibrate`, in units of the inputs of the
                tiles, after rescaling; the others have the scaling of the card. Layers that are not
                on tiles are skipped. Output ranges are dropped, as by `calibrate`.
            model: As in `calibrate`.

        Raises:
            ValueError: A range is not above 0 and finite, no layer is on tiles, the card has no
                converters, or the tiles are aihwkit's.

        Example:
            >>> from analog_grasp import deploy
            >>> deployment = deploy(nn.Sequential(nn.Linear(3, 2)), "pcm-hermes-2")
            >>> deployment.set_input_ranges({"0": 2.5}).program(seed=0).seed
            0
        """
        self._check_input_ranges()
        hooks = hooks_of(self.model if model is None else model)
        for name, size in ranges.items():
            if not 0 < size < math.inf:
                raise ValueError(f"The input range of {name} is {size}: it should be above 0.")
        found = {name: size for name, size in ranges.items() if name in hooks.layers}
        if not found:
            raise ValueError(
                f"The input ranges are those of {', '.join(list(ranges)[:3]) or 'no layer'}, of "
                f"which none is on tiles: the layers on tiles are {', '.join(hooks.layers)}."
            )
        hooks.set_ranges(found, {})
        return self

    def _check_input_ranges(self) -> None:
        self._settings.check_own("input_ranges")
        if self.card.converters is None:
            raise ValueError(
                f"The card {self.card.name} has no converters, whose input ranges could be set: "
                "use a card with converters."
            )

    def calibrate_outputs(
        self,
        observe: Callable[[nn.Module], object],
        percentile: RangeRule = 100.0,
        model: nn.Module | None = None,
    ) -> dict[str, list[list[float]]]:
        """Set the ADC's range of every tile from the outputs that its targets give on data.

        By default all tiles have the range of the card, which no range exceeds and with which drift
        compensation reads out.

        Args:
            observe: Runs a model on data, as in `calibrate`, which comes before.
            percentile: Of the magnitudes of a tile's outputs; or ``"least-error"``, of the ADC.
            model: As in `calibrate`.

        Returns:
            By layer, the ranges of the tiles of each part of the inputs, used until the next call,
            rescaling or change of input ranges.

        Raises:
            ValueError: As `calibrate`, for the ADC; or the tiles are aihwkit's.
        """
        self._settings.check_own("output_ranges")
        chosen = self.model if model is None else model
        hooks = hooks_of(chosen)
        ranges = mapping.observed_output_ranges(
            self.card, hooks.layers, lambda: observe(chosen), percentile
        )
        hooks.set_ranges(hooks.input_ranges, ranges)
        return ranges

    def rescale(
        self, observe: Callable[[nn.Module], object], exponent: float = 0.5
    ) -> "Deployment":
        """Program ``W diag(r)`` and feed ``x / r``, with r from the inputs of the model on data.

        Fewer small inputs then vanish below a step of the DAC. A programmed chip is programmed
        again; `calibrate` comes afterwards, as earlier ranges are dropped. All of this holds for
        attached models too. A programmed adapter is not rescaled; GRASP computes with its devices.

        Args:
            observe: Runs a model on data, as in `calibrate`.
            exponent: a in ``r_k = max|x_k|^a / max|w_k|^(1-a)`` (NORA, DATE 2025), 0 to 1.

        Raises:
            ValueError: The exponent is out of its range, or the tiles are aihwkit's.
        """
        self._settings.check_own("rescale")
        hooks = hooks_of(self.model)
        # The matrices of a programmed LoRA compute digitally too.
        digital = computed_digitally(hooks.layers.values())
        with torch.inference_mode(False), hooks.first_passes(), digital:
            mapping.rescale_layers(self.layers, lambda: observe(self.model), exponent)
        self._chip.rescalings += 1
        return self.program_again()

    def program_again(self) -> "Deployment":
        """Program a chip that is programmed again, age it to the same time, and return it."""
        seconds = self.time_s
        return self if self.seed is None else self.program(self.seed).drift_to(seconds)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of each layer now, as the digital side sees them.

        By layer name, ``(D_out, D)``, float32, in the units of the frozen weights: as read at the
        present time, after drift compensation.

        Example:
            >>> from analog_grasp import deploy
            >>> linear = nn.Sequential(nn.Linear(3, 2))
            >>> ideal = deploy(linear, "ideal").program(seed=0)
            >>> torch.allclose(ideal.weights()["0"], linear[0].weight)
            True
        """
        return {name: layer.present_weight() for name, layer in self.layers.items()}

    def report(self) -> DeploymentReport:
        """Return the tiles and the weight error of each layer now, and what is not on tiles.

        The layers are the frozen ones, without a programmed adapter.
        """
        unread = [name for name, x in self.layers.items() if self._chip.passes and not x.reads]
        size = self.card.tile.rows * self.card.tile.columns
        rows = [
            LayerReport(x.name, x.tiles, x.cells, x.cells / (x.tiles * size), x.weight_error())
            for x in self.layers.values()
        ]
        return DeploymentReport(rows, digital_modules(self.model), unread)

    def layer_sensitivity(
        self, score: Callable[[nn.Module], float], alone: Literal["analog", "digital"] = "analog"
    ) -> dict[str, float]:
        """Return the score with each layer alone on the chip, or each layer alone taken off it.

        The layers are the frozen ones; a programmed adapter stays on its devices.

        Args:
            score: Scores a model, such as ``task.evaluate``.
            alone: One layer at a time computes so, all others the other way; any other value raises
                ValueError.

        Returns:
            By the name of the layer in the base model.
        """
        if alone not in ("analog", "digital"):
            raise ValueError(unknown_name("alone", alone, ("analog", "digital")))
        scores = {}
        for name, layer in self.layers.items():
            others = [other for other in self.layers.values() if other is not layer]
            digital = computed_digitally(others if alone == "analog" else [layer])
            # All with the same read noise, so that their differences are those of the layers.
            with digital, hooks_of(self.model).first_passes():
                scores[name] = score(self.model)
        return scores

    def save(self, path: str | Path) -> None:
        """Write the digital model, the device and the chip instance to a folder.

        Its files are model.safetensors, deployment.json and, with write tolerances,
        write_tolerances.safetensors.
        """
        hooks = hooks_of(self.model)
        chip = {
            "seed": self.seed,
            "time_s": self.time_s,
            "input_ranges": hooks.input_ranges,
            "output_ranges": hooks.output_ranges,
            "input_scales": {
                name: layer.input_scale.tolist()
                for name, layer in self.layers.items()
                if layer.input_scale is not None
            },
        }
        tolerances = write_tolerances(self)
        saving.write_deployment(Path(path), self.model, self._settings, chip, tolerances)

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, model: nn.Module | None = None) -> "Deployment":
        """Return the deployment of a folder from `save`: the same chip at the same time.

        `model` is one of the same structure, for one that transformers does not provide.

        Raises:
            FileNotFoundError: The folder holds no deployment, or its write tolerances are missing.
            ValueError: A file is damaged, or the model has another structure.
        """
        digital, settings, chip = saving.read_deployment(Path(path), model)
        deployment = cls(digital, settings, {})
        hooks = hooks_of(deployment.model)
        saving.check_layers(Path(path), chip, hooks.layers)
        for name, scale in chip["input_scales"].items():
            layer: Any = hooks.layers[name]
            layer.rescale(torch.tensor(scale, dtype=torch.float32))
        saving.restore_tolerances(Path(path), deployment.layers, set(chip["write_tolerances"]))
        if chip["seed"] is not None:
            deployment.program(chip["seed"]).drift_to(chip["time_s"])
        hooks.set_ranges(chip["input_ranges"], chip["output_ranges"])
        return deployment

    def _finish(self, model: nn.Module, shared: Mapping[str, Tensor]) -> nn.Module:
        """Put the adapter in devices where it is to be programmed, and add the hooks."""
        model.eval().requires_grad_(False)
        layers = dict(self.layers)
        if self.placement == "programmed":
            stored = put_into_devices(model, self._settings)
            self._adapters += stored
            for part in stored if self.seed is not None else ():
                part.program(self.seed or 0)
                part.drift_to(self.time_s)
            layers |= {part.name: part for part in stored if isinstance(part, ChipLayer)}
        exact = self._settings.first_token == "digital"
        vars(model)["forward_hooks"] = ForwardHooks(model, layers, self._chip, shared, exact)
        return model


def _checked_seed(seed: SupportsIndex) -> int:
    """Return a seed as Python's integer, which JSON holds and whose text names the chip."""
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(f"The seed of a chip is {seed!r}: it should be an integer.") from None
