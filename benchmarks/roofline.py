"""Rates of the products of codes and limbs, compared with the limits of the processor.

Both limits are measured in the same run, on one thread: the rate of the instruction VPDPBUSD on
registers, which multiplies and adds 64 pairs of bytes, and the rate at which 256 MiB are copied.
A product of N vectors with a layer of D inputs and D_out outputs takes 2 N D L D_out operations for
L limbs; it reads N D + L D D_out bytes and writes 4 N L D_out.

    python benchmarks/roofline.py --figure docs/images/performance-roofline.png

Needs a processor with AVX-512 VNNI; about half a minute.
"""

import argparse
import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm
import matplotlib.pyplot as plt
import numpy as np
import torch
from peers import machine, markdown

from analog_grasp.kernels.matmul import Limbs, multiply, pack
from analog_grasp.report.figures import STYLE

STEP = 1 / 127
# Vectors, inputs and outputs of a product, at most the 512 inputs of a tile.
SHAPES = {
    "MiniLM attention, 64 x 25 tokens": (1600, 384, 384),
    "MiniLM, first of the MLP": (1600, 384, 1536),
    "MiniLM, second of the MLP": (1600, 512, 384),
    "BERT-base attention, 64 x 128 tokens": (8192, 512, 768),
    "BERT-base, first of the MLP": (8192, 512, 3072),
    "SmolLM2-135M MLP, 512 tokens": (512, 512, 1536),
    "SmolLM2-135M MLP, 64 tokens": (64, 512, 1536),
    "SmolLM2-135M MLP, 8 tokens": (8, 512, 1536),
    "SmolLM2-135M MLP, 1 token": (1, 512, 1536),
}
LIMBS = {1: "fast", 3: "exact"}

# 16 sums at a time, so that each instruction can wait for its predecessor.
_SUMS = 16
_OPERATIONS = 2 * 64
_CALL = "call <16 x i32> @llvm.x86.avx512.vpdpbusd.512"


class Rate(NamedTuple):
    """A measured product: its operations per byte of memory, and per second."""

    shape: str
    limbs: int
    intensity: float
    rate: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="PNG file for the figure")
    parser.add_argument("--quick", action="store_true", help="one small product, once")
    asked = parser.parse_args()
    if not torch.cpu.get_capabilities().get("avx512_vnni"):
        parser.error("this processor lacks AVX-512 VNNI")
    torch.set_num_threads(1)
    shapes = {"small": (64, 64, 64)} if asked.quick else SHAPES
    repeats = 1 if asked.quick else 9
    peak, bandwidth = instruction_rate(repeats), copy_rate(repeats)
    rates = [
        Rate(name, limbs, *product_rate(shape, limbs, repeats))
        for name, shape in shapes.items()
        for limbs in LIMBS
    ]
    print(f"{machine()}\n\n{table(rates, peak, bandwidth)}")
    if asked.figure:
        draw(rates, peak, bandwidth, asked.figure)


def shortest(function: Callable[[], object], repeats: int) -> float:
    """Return the CPU seconds of the fastest call, after one that is not timed."""
    taken = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        function()
        taken.append(time.process_time() - begin)
    return min(taken[1:])


def instruction_rate(repeats: int, loops: int = 500_000) -> float:
    """Return the operations per second of VPDPBUSD on registers."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        opt=3, cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten()
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_instructions()), target)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(
        engine.get_function_address("multiply_add")
    )
    memory = np.ones(128, np.int8)
    seconds = shortest(lambda: run(loops, memory.ctypes.data), repeats)
    return loops * _SUMS * _OPERATIONS / seconds


def _instructions() -> str:
    """Return LLVM's code of a loop of VPDPBUSD on registers."""
    pair = "<64 x i8> %x, <64 x i8> %y"
    sums = range(_SUMS)
    return "\n".join(
        [
            "declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)",
            "define void @multiply_add(i64 %count, ptr %memory) {",
            "entry:",
            "  %x = load <64 x i8>, ptr %memory, align 1",
            "  %second = getelementptr i8, ptr %memory, i64 64",
            "  %y = load <64 x i8>, ptr %second, align 1",
            "  br label %loop",
            "loop:",
            "  %i = phi i64 [0, %entry], [%next, %loop]",
            *(f"  %a{i} = phi <16 x i32> [zeroinitializer, %entry], [%b{i}, %loop]" for i in sums),
            *(f"  %b{i} = {_CALL}(<16 x i32> %a{i}, {pair})" for i in sums),
            "  %next = add i64 %i, 1",
            "  %more = icmp ult i64 %next, %count",
            "  br i1 %more, label %loop, label %done",
            "done:",
            *(
                f"  %s{i} = add <16 x i32> %b{i}, {f'%s{i - 1}' if i else 'zeroinitializer'}"
                for i in sums
            ),
            f"  store <16 x i32> %s{_SUMS - 1}, ptr %memory, align 1",
            "  ret void",
            "}",
        ]
    )


def copy_rate(repeats: int) -> float:
    """Return the bytes per second that are read and written when memory is copied."""
    source = np.ones(2**28, np.int8)
    copy = np.empty_like(source)
    return 2 * source.nbytes / shortest(lambda: np.copyto(copy, source), repeats)


def product_rate(shape: tuple[int, int, int], limbs: int, repeats: int) -> tuple[float, float]:
    """Return the operations of a product per byte of memory, and per second."""
    vectors, width, outputs = shape
    codes = torch.randint(-127, 128, (vectors, width), dtype=torch.int8)
    packed = pack(torch.randn(outputs, width), limbs, STEP)
    out = torch.empty(vectors, limbs * outputs, dtype=torch.int32)
    operations = 2 * vectors * width * limbs * outputs
    moved = codes.nbytes + packed.values.nbytes + out.nbytes
    # As in a model, no layer is still in the cache when one vector is multiplied.
    layers = [
        Limbs(packed.values.clone(), packed.unit) for _ in range(max(int(2e8 / operations), 1))
    ]

    def compute() -> None:
        for layer in layers:
            multiply(codes, layer, out)

    return operations / moved, len(layers) * operations / shortest(compute, repeats)


def table(rates: Sequence[Rate], peak: float, bandwidth: float) -> str:
    """Return one row per shape and precision, with the share of the nearer limit."""
    rows = []
    for shape, limbs, intensity, rate in rates:
        limit = min(peak, intensity * bandwidth)
        rows.append(
            (shape, LIMBS[limbs], f"{intensity:.3g}", f"{rate / 1e12:.3f}", f"{rate / limit:.0%}")
        )
    title = (
        f"Products of int8 on one thread; limits: {peak / 1e12:.3f} tera-operations per second, "
        f"{bandwidth / 1e9:.1f} GB/s"
    )
    header = ("", "precision", "operations per byte", "tera-operations per second", "of the limit")
    return f"**{title}**\n\n{markdown(header, rows)}"


def draw(rates: Sequence[Rate], peak: float, bandwidth: float, path: Path) -> None:
    """Draw the rates of the products below the two limits."""
    with plt.rc_context(fname=STYLE):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        found = np.array([rate.intensity for rate in rates])
        intensity = np.geomspace(found.min() / 2, found.max() * 2, 200)
        limit = np.minimum(peak, intensity * bandwidth)
        axes.loglog(intensity, limit / 1e12, color="0.3", label="limit of the processor")
        for number, (limbs, precision) in enumerate(LIMBS.items()):
            own = [rate for rate in rates if rate.limbs == limbs]
            points = [rate.intensity for rate in own], [rate.rate / 1e12 for rate in own]
            axes.loglog(*points, "os"[number], color=f"C{number}", label=f"{precision} precision")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.set_xlabel("operations per byte of memory")
        axes.set_ylabel("tera-operations per second")
        axes.legend()
        figure.savefig(path, dpi=150)
        plt.close(figure)


if __name__ == "__main__":
    main()
