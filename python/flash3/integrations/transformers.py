"""flash3 as an attention implementation of Hugging Face transformers.

flash3.integrations.transformers.register()
model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="flash3")
"""

from __future__ import annotations

import functools

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils

from flash3._attention import attention

__all__ = ["register"]


def register(name: str = "flash3") -> None:
    """Makes `attn_implementation=name` work in every model that goes through transformers' AttentionInterface.

    Causal masks, sliding windows, softcap, sinks and shared key heads are the engine's own; padding is a bias of one
    row a sequence. Any other mask (packed sequences, chunks, static caches, a model's own overlays) becomes a bias of
    shape (batch, 1, seqlen_q, seqlen_kv).
    """
    AttentionInterface.register(name, _attention_forward)
    AttentionMaskInterface.register(name, _make_mask)
    _keep_name(name)


# The names that were registered, which transformers is not to look for elsewhere.
_names: set[str] = set()


def _keep_name(name):
    """transformers takes any name with "flash" in it for one of its own kernels, to be imported or downloaded, before
    it looks at what is registered. Its check is told of ours."""
    if not _names:
        check = PreTrainedModel._check_and_adjust_attn_implementation

        @functools.wraps(check)
        def check_others(self, attn_implementation, *arguments, **keywords):
            if attn_implementation in _names:
                return attn_implementation
            return check(self, attn_implementation, *arguments, **keywords)

        PreTrainedModel._check_and_adjust_attn_implementation = check_others
    _names.add(name)


def _make_mask(
    batch_size,
    q_length,
    kv_length,
    q_offset=0,
    kv_offset=0,
    mask_function=masking_utils.causal_mask_function,
    attention_mask=None,
    **others,
):
    """None: the layer's own causal band. (batch, kv_length) booleans: that band, and which keys are no padding.
    (batch, 1, q_length, kv_length) booleans: the whole mask."""
    ends_together = q_offset + q_length == kv_offset + kv_length
    if not (ends_together and _is_causal_band(mask_function)):
        others.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        return masking_utils.sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **others
        )
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is None:
        return None
    return padding[:, kv_offset : kv_offset + kv_length]


def _is_causal_band(mask_function) -> bool:
    """Whether this is transformers' causal mask, or that with its sliding window, and nothing else. The window is told
    by its parts: what is not recognised is no error, only slower."""
    if mask_function is masking_utils.causal_mask_function:
        return True
    if mask_function.__qualname__ != "and_masks.<locals>.and_mask":
        return False
    (parts,) = (cell.cell_contents for cell in mask_function.__closure__)
    return (
        len(parts) == 2
        and parts[0].__qualname__ == "sliding_window_overlay.<locals>.inner_mask"
        and parts[1] is masking_utils.causal_mask_function
    )


def _attention_forward(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    sliding_window=None,
    softcap=None,
    is_causal=None,
    s_aux=None,
    position_bias=None,
    cache=None,
    **_,
):
    """transformers' attention function: (batch, heads, seqlen, head_dim) tensors; returns (batch, seqlen, heads,
    head_dim), and no weights, which do not exist."""
    if dropout:
        raise NotImplementedError(f"dropout: is {dropout}, but no engine serves it; accepted is 0")
    if cache is not None:
        raise NotImplementedError("cache: is a paged cache, but no engine serves it; accepted is None")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = sliding_window
    bias = None
    if attention_mask is not None:
        if attention_mask.dim() == 4:
            causal, window = False, None
            attention_mask = attention_mask[..., : key.shape[2]]
        else:
            attention_mask = attention_mask[:, None, None, :]
        bias = attention_mask.float()
        if attention_mask.dtype is torch.bool:
            # Finite, so that a row without a key (a padded query) is harmless noise, as in eager attention.
            bias = torch.zeros_like(bias).masked_fill_(~attention_mask, torch.finfo(torch.float32).min)
    if position_bias is not None:
        bias = position_bias.float() if bias is None else bias + position_bias.float()
    out = attention(
        *(_last_contiguous(t.transpose(1, 2)) for t in (query, key, value)),
        softmax_scale=scaling,
        causal=bool(causal),
        window_left=None if window is None else window - 1,
        softcap=softcap or 0.0,
        sinks=None if s_aux is None else s_aux.float(),
        bias=bias,
    )
    return out, None


def _last_contiguous(tensor):
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
