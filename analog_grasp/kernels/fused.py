"""Functions in plain torch, compiled by torch to few kernels where their arguments are on a GPU."""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor


def fused[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that is compiled at its first call with tensors on a GPU.

    Its numbers that vary from call to call must be tensors: each value of another argument is
    compiled by itself. Without a compiler (see `compiles`) the function runs as it is.

    Example:
        >>> fused(torch.square)(torch.tensor(3.0))
        tensor(9.)
    """

    @functools.cache
    def compiled() -> Callable[P, T]:
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        on_gpu = any(isinstance(arg, Tensor) and arg.is_cuda for arg in args)
        return (compiled() if on_gpu and compiles() else function)(*args, **kwargs)

    return run


@functools.cache
def compiles() -> bool:
    """Return whether torch can compile for a GPU: it needs triton and a C compiler."""
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))
