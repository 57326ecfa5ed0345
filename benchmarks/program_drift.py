"""Time of programming and drift of a whole model, compared with aihwkit.

For every card that restates a noise model of aihwkit: all frozen layers of MiniLM's and of
RoBERTa-base's shape with random weights, on tiles of the card's size. This package runs `deploy`,
`program` and `drift_to`; aihwkit runs `convert_to_analog` to the torch tile,
`program_analog_weights` and `drift_analog_weights`. Both use global drift compensation,
first to one day and then, without programming, to two.

    python benchmarks/program_drift.py --shapes MiniLM
    python benchmarks/program_drift.py --quick
    python benchmarks/program_drift.py --shapes RoBERTa-base --gpu

Both shapes take about half an hour on 2 cores, MiniLM's some minutes.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit_peer import configured, converted
from fidelity import DAY, MODELS
from parameters import BASE, ROBERTA
from peers import interleaved, machine, markdown
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from analog_grasp import Deployment, DeviceCard, deploy

MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
SHAPES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "MiniLM": (lambda: BertModel(BertConfig(**MINILM)), 5),
    "RoBERTa-base": (lambda: RobertaModel(RobertaConfig(**ROBERTA, **BASE)), 3),
}
QUICK: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a tiny BERT": (lambda: BertModel(BertConfig(vocab_size=50, **TINY)), 2)
}
HEADER = ("card", "chip at one day: aihwkit, s", "ours, s", "ratio",
          "at two days: aihwkit, s", "ours, s", "ratio")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model on two cards")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--gpu", action="store_true", help="on a GPU")
    asked = parser.parse_args()
    cards = list(MODELS)[:2] if asked.quick else list(MODELS)
    shapes = QUICK if asked.quick else {name: SHAPES[name] for name in asked.shapes}
    print(machine())
    print("\nMedian and, in brackets, quartiles; ratios are aihwkit's seconds over ours.")
    for name, (make, repeats) in shapes.items():
        model = make().eval().to("cuda" if asked.gpu else "cpu")
        rows = [row(model, DeviceCard.load(card), repeats) for card in cards]
        print(
            f"\n**{name}, {repeats} calls of each in turn**\n\n{markdown(HEADER, rows)}", flush=True
        )


def row(model: nn.Module, card: DeviceCard, repeats: int) -> list[str]:
    """Return the seconds of both on one card."""
    at_one_day = interleaved(
        {"aihwkit": lambda: aged_aihwkit(model, card), "ours": lambda: aged(model, card)}, repeats
    )
    theirs, ours = aged_aihwkit(model, card), aged(model, card)
    at_two_days = interleaved(
        {
            "aihwkit": lambda: finished(theirs.drift_analog_weights(2 * DAY)),
            "ours": lambda: finished(ours.drift_to(2 * DAY)),
        },
        repeats,
    )
    return [card.name, *compared(**at_one_day), *compared(**at_two_days)]


def aged(model: nn.Module, card: DeviceCard) -> Deployment:
    """Return the deployment one day after programming."""
    return finished(deploy(model, card).program(seed=0).drift_to(DAY))


def aged_aihwkit(model: nn.Module, card: DeviceCard, config: type | None = None) -> nn.Module:
    """Return the same with aihwkit, by default on its torch tile."""
    settings = configured((config or TorchInferenceRPUConfig)(), card)
    settings.noise_model = MODELS[card.name]()
    settings.drift_compensation = GlobalDriftCompensation()
    analog = converted(model, settings).eval()
    analog.program_analog_weights()
    analog.drift_analog_weights(DAY)
    return finished(analog)


def finished[T](result: T) -> T:
    """Return a result when a GPU has computed it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def compared(aihwkit: Sequence[float], ours: Sequence[float]) -> Iterator[str]:
    """Yield the seconds of both and their ratio, pair by pair."""
    for calls in (aihwkit, ours, np.divide(aihwkit, ours)):
        low, median, high = np.quantile(calls, (0.25, 0.5, 0.75))
        yield f"{median:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    main()
