"""Positions of the first tokens of sequences, which a chip can compute digitally."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class FirstTokens(NamedTuple):
    """The first token of each sequence of a batch; B: sequences, T: tokens of each.

    Attributes:
        positions: The position of each first token, ``(B,)``.
        length: T.

    Example:
        >>> first = FirstTokens(torch.tensor([0, 2]), 4)
        >>> first.places(torch.zeros(2, 4, 8)), first.places(torch.zeros(8, 8))
        ((tensor([0, 1]), tensor([0, 2])), (tensor([0, 6]),))
    """

    positions: Tensor
    length: int

    def places(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """Return the index of the first tokens in ``(B, T, D)`` or ``(B T, D)``; None in others."""
        batch, positions = len(self.positions), self.positions.to(x.device)
        rows = torch.arange(batch, device=x.device)
        if x.shape[:-1] == (batch, self.length):
            return rows, positions
        if x.shape[:-1] == (batch * self.length,):
            return (rows * self.length + positions,)
        return None


def first_tokens(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> FirstTokens | None:
    """Return the first tokens of a forward pass by its arguments; None in a later pass."""
    given = inspect.signature(model.forward).bind_partial(*args).arguments | kwargs
    attention_mask, inputs_embeds = map(given.get, ("attention_mask", "inputs_embeds"))
    # Transformers passes the one or the other, by its version and the model.
    caches = filter(None, map(given.get, ("cache", "past_key_values")))
    input_ids = given.get("input_ids", args[0] if args else None)
    if any(cache.get_seq_length() > 0 for cache in caches):
        return None
    tokens = input_ids if input_ids is not None else inputs_embeds
    if tokens is None or tokens.dim() < 2:
        return None
    if attention_mask is None or attention_mask.dim() != 2:
        positions = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    else:
        positions = attention_mask.long().argmax(1)
    return FirstTokens(positions, tokens.shape[1])
