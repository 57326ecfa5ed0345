"""Meaning of StochGRASP's standard deviations: sensitivity, and accuracy with them permuted.

For saved StochGRASP adapters, the rank correlation of the learned standard deviations with the
measured sensitivity of the loss to noise of each group and of each layer (the root mean square and
the mean over its groups), and the accuracy of sampled adapters whose standard deviations are in
place, permuted among the groups of all layers, or all equal.

    analog-grasp train --adapter stochgrasp
    python benchmarks/learned_sigmas.py runs/train/stochgrasp

About five minutes of one core for each adapter.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple, cast

import torch
from peers import markdown
from peft import PeftModel
from rich.console import Console
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel

import analog_grasp as ag
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.adapters.model import StochGraspModel
from analog_grasp.study.trained_adapters import load_adapter
from analog_grasp.tasks import Task
from analog_grasp.training.distillation import inputs_of
from analog_grasp.training.examples import Batch, count_of, draw_examples, pick

KINDS = ("scales", "shifts")
BATCH_SIZE = 32


class Kind(NamedTuple):
    """The scales or the shifts of all layers, group by group."""

    logarithms: list[Tensor]
    """Of the relative standard deviations, by layer; writing to them changes the adapter."""
    rises: Tensor
    """Rise of the loss per squared relative standard deviation, all groups of all layers."""

    @property
    def sigmas(self) -> Tensor:
        """Relative standard deviations, all groups of all layers."""
        return torch.cat(self.logarithms).exp()

    def write(self, sigmas: Tensor) -> None:
        """Replace the relative standard deviations."""
        sizes = [len(each) for each in self.logarithms]
        for held, values in zip(self.logarithms, sigmas.log().split(sizes), strict=True):
            held.copy_(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", nargs="+", type=Path, help="folders of StochGRASP adapters")
    parser.add_argument("--model", help="the adapters' pre-trained model")
    parser.add_argument("--task", default="reviews", help="a classification task")
    parser.add_argument("--data-dir")
    parser.add_argument("--examples", type=int, default=512, help="of the sensitivity")
    parser.add_argument("--factors", nargs="+", type=float, default=[1.0, 4.0], help="of the noise")
    parser.add_argument("--draws", type=int, default=3, help="of the permutation and the samples")
    asked = parser.parse_args()
    task = ag.load_task(asked.task, asked.data_dir)
    meanings, scores = [], []
    for path in asked.adapters:
        model = load_adapter(path, asked.model, task)
        rows = draw_examples(task, asked.examples, model, 0, at_most=True)
        kinds = kinds_of(model, rows)
        meanings += [(str(path), name, *meaning(kind)) for name, kind in kinds.items()]
        Console(stderr=True).print(meanings[-len(kinds) :])
        for row in sampled(model, task, list(kinds.values()), asked.factors, asked.draws):
            scores.append((str(path), *row))
            Console(stderr=True).print(row)
    spread = "standard deviations, median (5 to 95 %)"
    correlations = ("rank correlation", "of layers")
    print(markdown(("adapter", "of", spread, *correlations, "permuted"), meanings), end="\n\n")
    print(markdown(("adapter", "noise", "in place", "permuted", "equal"), scores))


def kinds_of(model: PeftModel, rows: Batch) -> dict[str, Kind]:
    """Return the standard deviations of the scales and shifts with their sensitivities."""
    layers = [each for each in model.modules() if isinstance(each, StochGraspLinear)]
    if not layers:
        raise SystemExit("The adapter has no standard deviations: give a StochGRASP adapter.")
    squares = squared_gradients(model, layers, rows)
    found = {}
    for number, kind in enumerate(KINDS):
        logarithms, rises = [], []
        for layer, square in zip(layers, squares, strict=True):
            name = layer.active_adapters[0]
            held = getattr(layer, layer.adapter_layer_names[2 + number])
            largest = layer.means(name)[number].detach().abs().max()
            sums = torch.zeros(len(held[name])).index_add_(0, layer.group_of[name], square[number])
            logarithms.append(held[name].data)
            rises.append(0.5 * largest.square() * sums)
        found[kind] = Kind(logarithms, torch.cat(rises))
    return found


def squared_gradients(
    model: PeftModel, layers: Sequence[StochGraspLinear], rows: Batch
) -> list[Tensor]:
    """Return the mean squared gradient of the log-probabilities by scale and shift, ``(2, D)``.

    By layer, of each input feature alone, over the examples and the classes in proportion to the
    model's probabilities: the diagonal of the Gauss-Newton matrix, at the means of the adapter.
    """
    total = [torch.zeros(2, layer.in_features) for layer in layers]
    inputs: dict[StochGraspLinear, Tensor] = {}
    outputs: dict[StochGraspLinear, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(keep(inputs, layer)) for layer in layers]
    hooks += [layer.base_layer.register_forward_pre_hook(keep(outputs, layer)) for layer in layers]
    # A loaded adapter is frozen: the embeddings begin the graph.
    cast(PreTrainedModel, model.get_base_model()).enable_input_require_grads()
    count = count_of(rows)
    for start in range(0, count, BATCH_SIZE):
        chosen = torch.arange(start, min(start + BATCH_SIZE, count))
        logits = model.eval()(**inputs_of(pick(rows, chosen))).logits
        probabilities = logits.detach().softmax(-1)
        for label in range(logits.shape[-1]):
            wanted = logits.log_softmax(-1)[:, label].sum()
            modulated = [outputs[layer] for layer in layers]
            gradients = torch.autograd.grad(wanted, modulated, retain_graph=True)
            weight = probabilities[:, label, None] / count
            for held, layer, gradient in zip(total, layers, gradients, strict=True):
                by_token = torch.stack([gradient * inputs[layer].detach(), gradient])
                by_example = by_token.view(2, len(gradient), -1, layer.in_features).sum(2)
                held += (weight * by_example.square()).sum(1)
    for hook in hooks:
        hook.remove()
    return total


def keep(
    held: dict[StochGraspLinear, Tensor], layer: StochGraspLinear
) -> Callable[[object, tuple[Tensor, ...]], None]:
    """Return a hook that keeps the first input of a module under a layer."""

    def hook(_: object, given: tuple[Tensor, ...]) -> None:
        held[layer] = given[0]

    return hook


def meaning(kind: Kind, permutations: int = 100) -> tuple[str, str, str, str]:
    """Return the standard deviations, their rank correlations and the rise when permuted.

    The correlations are those over all groups, and over the layers. The rise of the loss is that of
    standard deviations permuted among the groups, relative to that of the same ones in place.
    """
    sigmas = kind.sigmas
    sizes = [len(each) for each in kind.logarithms]
    by_layer = [[part.mean() for part in of.split(sizes)] for of in (sigmas.square(), kind.rises)]
    correlations = [spearmanr(*pair).statistic for pair in ((sigmas, kind.rises), by_layer)]
    squares = sigmas.square()
    generator = torch.Generator().manual_seed(0)
    permuted = [
        float(squares[torch.randperm(len(sigmas), generator=generator)] @ kind.rises)
        for _ in range(permutations)
    ]
    low, middle, high = sigmas.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    rise = mean(permuted) / float(squares @ kind.rises)
    groups, layers = (f"{found:.2f}" for found in correlations)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})", groups, layers, f"{rise:.2f}"


@torch.no_grad()
def sampled(
    model: PeftModel, task: Task, kinds: Sequence[Kind], factors: Sequence[float], draws: int
) -> list[tuple[str, ...]]:
    """Return the mean scores of sampled adapters, times 100, for each factor of the noise."""
    learned = [kind.sigmas for kind in kinds]
    rows = []
    for factor in factors:
        scores: dict[str, list[float]] = {"in place": [], "permuted": [], "equal": []}
        for draw in range(draws):
            for arrangement, found in scores.items():
                torch.manual_seed(draw)
                for kind, sigmas in zip(kinds, learned, strict=True):
                    if arrangement == "permuted":
                        sigmas = sigmas[torch.randperm(len(sigmas))]
                    elif arrangement == "equal":
                        # The same mean variance, so that only the arrangement differs.
                        sigmas = sigmas.square().mean().sqrt().expand_as(sigmas)
                    kind.write(factor * sigmas)
                with cast(StochGraspModel, model.base_model).sampling():
                    found.append(100 * task.evaluate(model))
        rows.append((f"x {factor:g}", *(f"{mean(found):.1f}" for found in scores.values())))
    for kind, sigmas in zip(kinds, learned, strict=True):
        kind.write(sigmas)
    return rows


if __name__ == "__main__":
    main()
