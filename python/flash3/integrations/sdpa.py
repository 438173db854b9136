"""flash3 as the flash backend of torch.nn.functional.scaled_dot_product_attention, through PyTorch's own registry.

flash3.integrations.sdpa.register()
torch.nn.attention.activate_flash_attention_impl("flash3")
"""

from __future__ import annotations

import torch
from torch.nn import attention as torch_attention

from flash3 import torch as door

__all__ = ["register"]


def register(name: str = "flash3") -> None:
    """Tells PyTorch of this backend; activate_flash_attention_impl(name) turns it on, restore_flash_attention_impl off.

    While it is on, scaled_dot_product_attention of CPU tensors runs on flash3 wherever PyTorch would take its own flash
    kernel (4 dimensions, no dropout). What no engine can do raises NotImplementedError.

    Raises:
        NotImplementedError: this PyTorch has no registry of flash backends.
    """
    if not hasattr(torch_attention, "register_flash_attention_impl"):
        raise NotImplementedError(f"PyTorch {torch.__version__} has no registry of flash attention backends")
    torch_attention.register_flash_attention_impl(name, register_fn=_activate)


class _Handle:
    """Keeps the operators' overrides in place until it is removed."""

    def __init__(self, library):
        self._library = library

    def remove(self) -> None:
        self._library._destroy()


def _activate():
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_flash_attention_for_cpu", _forward, "CPU", allow_override=True)
    library.impl("_scaled_dot_product_flash_attention_for_cpu_backward", _backward, "CPU", allow_override=True)
    return _Handle(library)


def _arguments(query, key, value, dropout_p, is_causal, attn_mask, scale):
    """flash3's tuples; tensors from (batch, heads, seqlen, head_dim)."""
    if dropout_p:
        raise NotImplementedError(f"dropout_p: is {dropout_p}, but no engine serves it; accepted is 0")
    query, key, value = (_last_contiguous(t.transpose(1, 2)) for t in (query, key, value))
    bias = None
    if attn_mask is not None:
        bias = attn_mask if attn_mask.dim() == 4 else attn_mask.expand(1, 1, *attn_mask.shape)
        bias = _last_contiguous(bias.expand(*bias.shape[:3], key.shape[1]))
    options = (scale, is_causal, "top_left", None, None, 0.0, None, None, "automatic", 0)
    return (query, key, value, None, None, None, None, None, bias), options


def _last_contiguous(tensor):
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _forward(query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    inputs, options = _arguments(query, key, value, dropout_p, is_causal, attn_mask, scale)
    out, lse = door._run_forward(inputs, options, None, True)
    # The layout that PyTorch's own kernel gives the row statistics, and promises to its compiler.
    return out.transpose(1, 2), lse.transpose(1, 2).contiguous().transpose(1, 2)


def _backward(
    grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, *, attn_mask=None, scale=None
):  # fmt: skip
    inputs, options = _arguments(query, key, value, dropout_p, is_causal, attn_mask, scale)
    saved = (_last_contiguous(out.transpose(1, 2)), logsumexp.contiguous())
    gradients = door._run_backward(_last_contiguous(grad_out.transpose(1, 2)), None, *saved, *inputs, *options)
    return tuple(gradient.transpose(1, 2) for gradient in gradients[:3])
