"""Folding an adapter into the weights of its model."""

from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


def fold(model: PeftModel) -> nn.Module:
    """Return the plain model whose weights hold the active adapter; the given one is used up.

    What `PeftModel.merge_and_unload` gives; but that fails on a task head of several layers under
    some methods, (IA)^3 among them, so heads are taken out of their wrappers first.

    Raises:
        ValueError: A folded weight is not finite.

    Example:
        >>> from peft import IA3Config, get_peft_model
        >>> from transformers import RobertaConfig, RobertaForSequenceClassification
        >>> tiny = RobertaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                      intermediate_size=16, vocab_size=10)
        >>> roberta = RobertaForSequenceClassification(tiny)
        >>> fold(get_peft_model(roberta, IA3Config(task_type="SEQ_CLS"))) is roberta
        True
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AuxiliaryTrainingWrapper):
                head = child.unload_and_optionally_merge_module(
                    merge=True, safe_merge=True, adapter_names=None
                )
                setattr(parent, name, head)
    return model.merge_and_unload(safe_merge=True)
