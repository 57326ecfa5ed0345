"""Query, key, value and feed-forward layers of a model, recognised by their names."""

from torch import nn

from analog_grasp.adapters.frozen import base_name, frozen_layers, matches

# The endings of the names in transformers: query, key and value, or one layer with all of them.
_ATTENTION = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
    *((name,) for name in ("qkv_proj", "Wqkv", "query_key_value", "c_attn", "qkv", "in_proj")),
)
# The second layer of the feed-forward block. BERT's name is also that of its attention's output.
_FEED_FORWARD = (
    *("down_proj", "fc2", "ffn.lin2", "ffn_output", "wo", "mlp.c_proj", "mlp.Wo"),
    *("dense_4h_to_h", "output.dense"),
)


def attention_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the endings of the names of a model's query, key and value layers.

    Returns:
        Three, or one where the three are a single fused layer.

    Raises:
        ValueError: The model has no layers of such names.

    Example:
        >>> from transformers import Phi3Config, Phi3Model
        >>> tiny = Phi3Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                   intermediate_size=16, vocab_size=10, pad_token_id=0)
        >>> attention_layers(Phi3Model(tiny))
        ('qkv_proj',)
    """
    names = linear_names(model)
    for endings in _ATTENTION:
        if all(any(matches(name, [ending]) for name in names) for ending in endings):
            return endings
    raise ValueError(
        f"A {type(model).__name__} has no layers that are named like query and value projections: "
        "give target_modules, or use the adapter lora-all-linear."
    )


def feed_forward_layer(model: nn.Module) -> tuple[str, ...]:
    """Return the ending of the names of a model's second feed-forward layers; () if unknown.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> feed_forward_layer(BertModel(BertConfig(hidden_size=8, num_hidden_layers=1,
        ...                    num_attention_heads=2, intermediate_size=16, vocab_size=10)))
        ('output.dense',)
    """
    names = linear_names(model)
    found = (e for e in _FEED_FORWARD if any(matches(name, [e]) for name in names))
    return tuple(found)[:1]


def linear_names(model: nn.Module) -> list[str]:
    """Return the names, in the base model, of the frozen linear layers that adapters can wrap.

    The output layer of ``nn.MultiheadAttention`` is not among them: it is never called, as its
    weight is read instead.

    Example:
        >>> linear_names(nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(2, 1)))
        ['0']
    """
    return [base_name(path) for path in _linear_paths(model)]


def are_all_wrapped(model: nn.Module) -> bool:
    """Return whether every linear layer that an adapter can wrap has one; False if deployed.

    Example:
        >>> are_all_wrapped(nn.Sequential(nn.Linear(2, 2)))
        False
    """
    try:
        paths = _linear_paths(model)
    except ValueError:
        return False
    return all(path.endswith(".base_layer") for path in paths)


def _linear_paths(model: nn.Module) -> list[str]:
    attention = [path for path, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    barred = tuple(f"{path}." for path in attention)
    return [path for path, _ in frozen_layers(model) if not path.startswith(barred)]
