"""Agreement of the simulated devices and tiles with aihwkit and the published formulas.

Writes docs/fidelity.md and a figure for each card in docs/images/fidelity/:

    python benchmarks/fidelity.py

A few minutes on 2 cores. Every sample is seeded; a second run writes the same figures.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
from aihwkit.inference import PCMLikeNoiseModel, ReRamCMONoiseModel, ReRamWan2022NoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import WeightNoiseType
from aihwkit_peer import configured
from scipy.stats import ks_2samp
from torch import nn

from analog_grasp import DeviceCard
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.devices.profile import profile as device_profile
from analog_grasp.kernels import matmul as products
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.time import format_time

DEVICES = 100_000
DAY = 86_400.0
TIMES = (0.0, 20.0, 3600.0, DAY, 365 * DAY)
MODELS: dict[str, Callable[[], object]] = {
    "pcm-nandakumar2019": PCMLikeNoiseModel,
    "pcm-hermes-1": lambda: HermesNoiseModel(num_devices=1),
    "pcm-hermes-2": lambda: HermesNoiseModel(num_devices=2),
    "rram-cmo-falcone": lambda: ReRamCMONoiseModel(acceptance_range=0.2),
    "rram-cmo-falcone-2pct": lambda: ReRamCMONoiseModel(acceptance_range=2),
    "rram-wan2022": lambda: ReRamWan2022NoiseModel(g_max=40.0),
}
# aihwkit tabulates this device at three times only.
TIMES_OF = {"rram-wan2022": (1.0, DAY, 2 * DAY)}
# Published standard deviations after programming, µS, for cards without an aihwkit model.
PUBLISHED: dict[str, Callable[[float], float]] = {
    "pcm-joshi2020": lambda g: 0.28638599 + 0.07585724 * g - 0.00178767 * g**2,
    "rram-milo2021": lambda g: max(4.782321 - 0.009107 * g, 0.0),
    "pcm-afm-2025": lambda w: afm_std(w),
    "sonos-agrawal2022": lambda g: 0.1988665 * (1 - np.exp(-g / 1.763115)),
}
# Features of aihwkit that a card does not have or a tile rejects.
UNSUPPORTED = (
    ("`mv_type` other than one pass", "no such key in a card"),
    ("noise management other than ABS_MAX, CONSTANT, NONE; `nm_thres`", "no such key in a card"),
    ("bound management SHIFT", "no such key in a card"),
    (
        "input noise, stochastic rounding, asymmetries, variation of the output noise",
        "no such key in a card",
    ),
    ("several conductance pairs per weight, custom converters", "no such key in a card"),
    (
        "I-R drop and nonlinear bit lines",
        'rejected by `tile="torch"`; aihwkit\'s own tiles support it',
    ),
    (
        "read noise that depends on the conductance",
        'rejected by `tile="rpucuda"`; `tile="torch"` supports it',
    ),
    ("calibrated input ranges", 'rejected by `tile="rpucuda"`; `tile="torch"` supports it'),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    images = out / "images" / "fidelity"
    images.mkdir(parents=True, exist_ok=True)
    lines = [INTRODUCTION, *device_section(), ROUND_TRIP.rstrip(), *tile_section()]
    lines += [*noise_section(), *arithmetic_section(), *unsupported_section()]
    lines += ["", "## Figures", "", FIGURES]
    for name in DeviceCard.names():
        draw(name, images / f"{name}.png")
        lines += ["", f"![{name}](images/fidelity/{name}.png)"]
    (out / "fidelity.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {out / 'fidelity.md'} and {len(DeviceCard.names())} figures in {images}")


INTRODUCTION = f"""# Fidelity

Comparison of the simulated devices and tiles with aihwkit and with the published formulas.
`python benchmarks/fidelity.py` writes this page; the same comparisons run as tests, with bounds, in
`tests/devices` and `tests/crossbar`.

## Devices compared with aihwkit

{DEVICES:,} devices are programmed to weights evenly spaced over [-1, 1] and read at a time after
programming, each side with its own random numbers. The columns are the mean and the standard
deviation of the error (weight read - weight) in % of the largest weight, and the p-value of the
two-sample Kolmogorov-Smirnov test. A p-value below 0.0001 would indicate a real difference."""

ROUND_TRIP = """
### Weights read through aihwkit's tiles

The table compares weights that are converted to conductances once. aihwkit's tiles convert twice:
after programming, `apply_drift_noise` converts the noisy weights back to conductances, scaled by
their own maximum instead of that of the target weights. `ReRamWan2022NoiseModel` draws its
conductances from the stored targets but converts them with this second scale, so weights read
through a tile are larger by the ratio of the two maxima, in mean and in standard deviation: by
7 % for 90,000 weights evenly spaced over [-1, 1], by 8 to 9 % for 90,000 uniformly distributed ones
(five seeds). The card `rram-wan2022` agrees with the model on conductances and therefore not
through aihwkit's tiles; the test `test_aihwkit_tiles_scale_wan2022_by_the_noisy_maximum` states
both.

### Two fits of the same RRAM data

The relaxation data of Wan et al. (Nature 2022, Extended Data Fig. 3, 1 s after programming) have
been fitted twice. Standard deviation in µS at the conductance g in µS:

| fit | formula | mean over 2 to 38 µS |
| :-- | :-- | :-- |
| aihwkit, `rram-wan2022` | 0.348 + 16.030 u - 43.853 u² + 45.393 u³ - 16.815 u⁴, u = g/40 | 1.82 |
| CrossSim | 1.536e-4 g³ - 1.167e-2 g² + 2.374e-1 g + 1.053 | 2.10 |

The card restates aihwkit's fit, which is 6 to 29 % below CrossSim's in this range.
"""

TILES = """
## Noise-free tiles compared with aihwkit's two tiles

A layer of 700 x 300 weights on tiles of 256, column-wise scaling, digital bias, 64 input vectors.
The columns are the largest difference relative to the largest output, and the share of outputs that
differ by more than 0.001 % of it: summation in another order can fall on the other side of a
rounding step. When an output is clipped, aihwkit's torch tile repeats the read of the whole batch,
while this package and the compiled tile repeat only the vector concerned; the torch tile receives
one vector at a time here.
"""

NOISE = """
## Noisy tiles compared with aihwkit's tiles

The same layer, one input vector read 4,000 times. The columns are the standard deviation of the
outputs relative to aihwkit's (mean over the 300 outputs), the difference of the means in standard
errors (root mean square; 1 is expected) and the share of outputs whose Kolmogorov-Smirnov test has
p below 0.01 (about 1 % is expected). The seed of a chip does not determine the forward noise of the
compiled tile: a pass or, with converters, a read-out of the drift compensation that is repeated has
other noise.
"""

ARITHMETIC = """
## Error of the arithmetic

Behind a DAC of at most 8 bits the inputs of a tile are whole numbers of steps. Products are exact
sums of integers: codes times weights written as 8-bit limbs, relative to the largest weight of the
column. The exact precision has three limbs, which round a weight by at most 6e-8 of the largest.
`--precision fast` stores the weights in bfloat16 and has one limb, which rounds by at most 0.39 %
of the largest (1/254; standard deviation 0.23 %). On processors without instructions for sums of
bytes (VNNI, AMX) it is twice as much, and the exact precision is a product in float32. Results do
not depend on the number of threads or on the worker. The split into batches changes no product of
integers; products in float32 can differ in the last bit, and noise is drawn for each forward pass,
so that another batch size has other noise.

On scores the two precisions differ by chance only: over 120 cells of `reviews` (GRASP and
StochGRASP, two PCM and two RRAM cards, five drift times, three chips; Xeon, Emerald Rapids, with
VNNI and without AMX) the difference fast - exact has a mean of 0.00 ±0.06 points and a standard
deviation of 0.33, which is three of the 1,000 sentences.

The same layer and inputs, 8-bit DAC, without ADC and output noise. The table gives the root mean
square difference from products in float64, in % of the root mean square of the outputs, and the
same for the noise of each device in exact precision, after drift compensation.
"""

FIGURES = """Left: standard deviation of a conductance against its target, directly after
programming and one day later. Right: weight read back over time for stored weights of 0.5 and 1,
mean and standard deviation, without drift compensation. Lines and bands are this package; dots are
samples of aihwkit's model, or the published formula where aihwkit has none. Noisy conductances are
clipped, at 0 or for CMO/HfOx at both ends, which lowers the standard deviation there."""


def device_section() -> list[str]:
    rows = []
    weights = torch.linspace(-1, 1, DEVICES).view(250, -1)
    for name, make in MODELS.items():
        for time in TIMES_OF.get(name, TIMES):
            torch.manual_seed(derive_seed(name, time))
            seed = derive_seed(time, name)
            model = CardNoiseModel(DeviceCard.load(name), seed)
            ours = model.read_weights(weights, time) - weights
            theirs = aihwkit_read(make(), weights, time) - weights
            p = ks_2samp(ours.flatten(), theirs.flatten(), method="asymp").pvalue
            numbers = (ours.mean(), theirs.mean(), ours.std(), theirs.std())
            rows.append(
                (name, format_time(time), *(f"{100 * float(n):.3f}" for n in numbers), f"{p:.3f}")
            )
    header = ("card", "time", "mean, here", "mean, aihwkit", "std, here", "std, aihwkit", "p")
    return ["", *markdown(header, rows)]


def tile_section() -> Iterator[str]:
    yield TILES
    rows = []
    bits = itertools.product((None, 6, 8, 10), repeat=2)
    cases = [{"dac_bits": d, "adc_bits": a} for d, a in bits]
    cases += [{"input_scaling": "none"}, {"input_scaling": "constant"}]
    cases += [
        {"bound_management": "none"},
        {"output_range": 0.5},
        {"output_range": 0.5, "bound_management": "none"},
    ]
    for case in cases:
        label = ", ".join(f"{k} {v}" for k, v in case.items())
        device = noise_free_card(**{"output_range": 30.0, **case})
        linear, x = dense(), inputs()
        with torch.inference_mode():
            ours = CrossbarLinear(linear, device, "layer")(x)
            row = [label]
            for config in (TorchInferenceRPUConfig, InferenceRPUConfig):
                judge = aihwkit_layer(linear, device, config)
                parts = [judge(v[None]) for v in x] if "output_range" in case else [judge(x)]
                row += differing(ours, torch.cat(parts))
        rows.append(row)
    header = ("settings", "torch tile: largest", "share", "compiled tile: largest", "share")
    yield from markdown(header, rows)


def noise_section() -> Iterator[str]:
    yield NOISE
    rows = []
    linear, x = dense(), inputs()[:1].expand(4000, -1).contiguous()
    exact = {"dac_bits": None, "adc_bits": None, "output_range": 30.0}
    for label, noise, sigma, config in (
        ("output noise 0.04, torch tile", 0.04, 0.0, TorchInferenceRPUConfig),
        ("output noise 0.04, compiled tile", 0.04, 0.0, InferenceRPUConfig),
        ("read noise 0.02 per read, compiled tile (w_noise)", 0.0, 0.02, InferenceRPUConfig),
    ):
        device = noise_free_card(**exact, output_noise=noise)
        layer = CrossbarLinear(linear, device, "layer")
        for split in layer.splits:
            split.variance = sigma**2 or None
        torch.manual_seed(1)
        with torch.inference_mode():
            ours, theirs = layer(x), aihwkit_layer(linear, device, config, sigma)(x)
        ratio = (ours.std(0) / theirs.std(0)).mean()
        error = ((ours.var(0) + theirs.var(0)) / len(x)).sqrt()
        apart = ((ours.mean(0) - theirs.mean(0)) / error).square().mean().sqrt()
        low = np.mean([ks_2samp(a, b).pvalue < 0.01 for a, b in zip(ours.T, theirs.T, strict=True)])
        rows.append((label, f"{ratio:.4f}", f"{apart:.2f}", f"{low:.1%}"))
    yield from markdown(("noise", "ratio of stds", "difference of means", "p below 0.01"), rows)


def arithmetic_section() -> Iterator[str]:
    yield ARITHMETIC
    rows = []
    settings = (("products in float32", torch.float32, 127, False),
                ("exact precision", torch.float32, 127, True),
                ("fast precision", torch.bfloat16, 127, True),
                ("fast precision, without VNNI or AMX", torch.bfloat16, 63, True))  # fmt: skip
    for label, dtype, steps, has in settings:
        with (
            mock.patch.object(products, "steps_of_one_limb", return_value=steps),
            mock.patch.object(products, "has_byte_instructions", return_value=has),
        ):
            rows.append((label, *[error_of_outputs("ideal", 0.0, dtype)] * 2))
    for name in MODELS:
        rows.append((name, *(error_of_outputs(name, time) for time in (0.0, DAY))))
    yield from markdown(("", "0s", "1d"), rows)


@torch.no_grad()
def error_of_outputs(name: str, time: float, dtype: torch.dtype = torch.float32) -> str:
    """Root mean square of (outputs - those of an ideal device in float64), relative, in %."""
    linear, x = dense(), inputs()
    ideal = CrossbarLinear(linear, unbounded("ideal"), "layer")
    exact = torch.zeros(len(x), len(linear.weight), dtype=torch.float64) + linear.bias.double()
    for split in ideal.splits:
        part = x[:, split.rows]
        gain = 1.0 / part.abs().amax(1, keepdim=True)
        codes = (part * gain * 127).round().double()
        exact += codes @ split.weight.double().T / (127 * gain.double()) * split.gain.double()
    layer = CrossbarLinear(linear, unbounded(name), "layer", dtype=dtype)
    layer.program(0)
    layer.drift_to(time)
    return f"{100 * float((layer(x) - exact).norm() / exact.norm()):.2g}"


def unbounded(name: str) -> DeviceCard:
    """Return a card with an 8-bit DAC as its only converter."""
    card = DeviceCard.load(name).with_(dac_bits=8, adc_bits=0, output_noise=0.0)
    without = {"output_range": None, "bound_management": "none"}
    return card.model_copy(update={"converters": card.converters.model_copy(update=without)})


def unsupported_section() -> list[str]:
    return ["", "## Features of aihwkit that are not supported", "",
            *markdown(("feature of aihwkit", "here"), UNSUPPORTED)]  # fmt: skip


def noise_free_card(**converters: object) -> DeviceCard:
    base = DeviceCard.load("pcm-hermes-2").without("programming", "drift", "read")
    changed = base.converters.model_copy(update={"output_noise": 0.0} | converters)
    return base.model_copy(update={"converters": changed})


def dense() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(700, 300)


def inputs() -> torch.Tensor:
    return torch.randn(64, 700, generator=torch.Generator().manual_seed(1))


def aihwkit_layer(
    linear: nn.Linear, card: DeviceCard, config: type, read_noise: float = 0.0
) -> AnalogLinear:
    """Return the layer on aihwkit's tiles with the settings of the card."""
    settings = configured(config(), card)
    io = settings.forward
    if read_noise:
        io.w_noise, io.w_noise_type = read_noise, WeightNoiseType.ADDITIVE_CONSTANT
    analog = AnalogLinear(linear.in_features, linear.out_features, True, rpu_config=settings)
    analog.set_weights(linear.weight, linear.bias)
    return analog.eval()


def differing(a: torch.Tensor, b: torch.Tensor) -> tuple[str, str]:
    difference = (a - b).abs() / b.abs().max()
    return f"{float(difference.max()):.1e}", f"{float((difference > 1e-5).float().mean()):.3%}"


def afm_std(w: float) -> float:
    """Return the standard deviation of Analog Foundation Models, on their scale of weights."""
    if w < 0.6:
        return 0.0
    if w < 52.5:
        return 2.5797 + 0.22420 * w - 3.7158e-3 * w**2 + 2.9398e-5 * w**3
    return 2.1103 + 0.24535 * w - 3.0550e-3 * w**2 + 1.2330e-5 * w**3


def draw(name: str, path: Path) -> None:
    card = DeviceCard.load(name)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    g_min, g_max = card.conductance.g_min, card.conductance.g_max
    targets = np.linspace(g_min, g_max, 41)
    for time, colour in ((0.0, "C0"), (DAY, "C1")):
        std = [read_back(CardNoiseModel(card, 1), g, time).std() for g in targets]
        left.plot(targets, std, colour, label=f"analog-grasp, {format_time(time)}")
        if name in MODELS:
            dots = np.linspace(g_min, g_max, 9)
            at = time or TIMES_OF.get(name, (0.0,))[0]
            theirs = [read_back(MODELS[name](), g, at).std() for g in dots]
            left.plot(dots, theirs, f"{colour}o", ms=4, label=f"aihwkit, {format_time(at)}")
        elif name in PUBLISHED and time == 0:
            dots = np.linspace(g_min, g_max, 9)
            left.plot(dots, [PUBLISHED[name](g) for g in dots], "k.", label="published formula")
    quantity, unit = "conductance", "µS"
    if name == "pcm-afm-2025":
        quantity, unit = "weight", "scale of the source"
    labels = (f"target {quantity} ({unit})", f"standard deviation ({unit})")
    left.set(xlabel=labels[0], ylabel=labels[1], title=name)
    left.set_ylim(bottom=0)
    left.legend(fontsize=7)
    times = np.geomspace(1, 365 * DAY, 25)
    for weight, colour in ((0.5, "C0"), (1.0, "C1")):
        profiles = [device_profile(card, time) for time in times]
        mean, std = (np.array([f(p)(np.array([weight]))[0] for p in profiles])
                     for f in (lambda p: p.mean_at, lambda p: p.std_at))  # fmt: skip
        right.plot(times, mean, colour, label=f"analog-grasp, weight {weight}")
        right.fill_between(times, mean - std, mean + std, color=colour, alpha=0.25, lw=0)
        if name in MODELS:
            dots = TIMES_OF.get(name, (20.0, 3600.0, DAY, 365 * DAY))
            for time in dots:
                # With both ends of the range, as a tile's weights have.
                stored = torch.full((DEVICES // 10,), weight)
                stored[0], stored[1] = 1.0, -1.0
                torch.manual_seed(1)
                read = aihwkit_read(MODELS[name](), stored[None], time)[0, 2:]
                right.errorbar(time, read.mean(), read.std(), fmt=f"{colour}o", ms=4, capsize=2)
    right.set(xscale="log", xlabel="time since programming (s)", ylabel="weight read back")
    right.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def aihwkit_read(model: object, weights: torch.Tensor, time: float) -> torch.Tensor:
    """Repeat the steps of aihwkit's `apply_noise`, which fails at 0 s."""
    targets, parameters = model.g_converter.convert_to_conductances(weights)
    read = []
    for target in targets:
        programmed = model.apply_programming_noise_to_conductance(target)
        drift = model.generate_drift_coefficients(target)
        read.append(model.apply_drift_noise_to_conductance(programmed, drift, time))
    return model.g_converter.convert_back_to_weights(read, parameters)


def read_back(model: CardNoiseModel, g: float, time: float) -> torch.Tensor:
    target = torch.full((20, 1000), float(g))
    torch.manual_seed(1)
    programmed = model.apply_programming_noise_to_conductance(target)
    drift = model.generate_drift_coefficients(target)
    return model.apply_drift_noise_to_conductance(programmed, drift, time)


def markdown(header: tuple[str, ...], rows: object) -> list[str]:
    lines = [f"| {' | '.join(header)} |", "|" + " :-- |" * len(header)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    main()
