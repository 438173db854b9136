"""flash3 as the flash backend of torch.nn.functional.scaled_dot_product_attention, through PyTorch's own registry.

flash3.integrations.sdpa.register()
torch.nn.attention.activate_flash_attention_impl("flash3")
"""

from __future__ import annotations

import torch
from torch.nn import attention as torch_attention

from flash3 import _flash3
from flash3 import torch as door

__all__ = ["register"]


def register(name: str = "flash3") -> None:
    """Tells PyTorch of this backend; activate_flash_attention_impl(name) turns it on, restore_flash_attention_impl off.

    While it is on, flash3 runs wherever PyTorch would take its own flash kernel: in scaled_dot_product_attention of CPU
    and CUDA tensors, and in torch.nn.attention.varlen. PyTorch may prefer another backend on a GPU:
    torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION) decides. What no engine can do raises
    NotImplementedError: dropout, and on a GPU a gradient, at the forward call.

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
    for name, function, device in (
        ("_scaled_dot_product_flash_attention_for_cpu", _forward_cpu, "CPU"),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", _backward_cpu, "CPU"),
        ("_scaled_dot_product_flash_attention", _forward_cuda, "CUDA"),
        ("_scaled_dot_product_flash_attention_backward", _backward_cuda, "CUDA"),
        ("_flash_attention_forward", _forward_packed, "CUDA"),
        ("_flash_attention_backward", _backward_packed, "CUDA"),
    ):
        library.impl(name, function, device, allow_override=True)
    return _Handle(library)


def _refuse(**arguments):
    for name, given in arguments.items():
        if given is not None and given is not False and given != 0:
            raise NotImplementedError(f"{name}: is {given}, but no engine serves it; accepted is {name}'s default")


def _arguments(query, key, value, dropout_p, is_causal, attn_mask, scale):
    """flash3's tuples; tensors from (batch, heads, seqlen, head_dim)."""
    _refuse(dropout_p=dropout_p)
    query, key, value = (_last_contiguous(t.transpose(1, 2)) for t in (query, key, value))
    bias = None
    if attn_mask is not None:
        bias = attn_mask if attn_mask.dim() == 4 else attn_mask.expand(1, 1, *attn_mask.shape)
        bias = _last_contiguous(bias.expand(*bias.shape[:3], key.shape[1]))
    options = (scale, is_causal, "top_left", None, None, 0.0, None, None, "automatic", 0)
    return (query, key, value, None, None, None, None, None, bias), options


def _last_contiguous(tensor):
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _run(given, inputs, options, out=None):
    """The forward pass; what its backward would refuse is refused now, not in the middle of training. Views made here,
    below autograd, do not require gradients: the given tensors do."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        _flash3.plan(inputs, options, True)
    return door._run_forward(inputs, options, out, True)


def _differentiate(grad_out, out, logsumexp, inputs, options):
    saved = (_last_contiguous(out), logsumexp.contiguous())
    return door._run_backward(_last_contiguous(grad_out), None, *saved, *inputs, *options)[:3]


def _forward_cpu(query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    out, lse = _run((query, key, value), *_arguments(query, key, value, dropout_p, is_causal, attn_mask, scale))
    # The layout that PyTorch's own kernel gives the row statistics, and promises to its compiler.
    return out.transpose(1, 2), lse.transpose(1, 2).contiguous().transpose(1, 2)


def _backward_cpu(
    grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, *, attn_mask=None, scale=None
):  # fmt: skip
    arguments = _arguments(query, key, value, dropout_p, is_causal, attn_mask, scale)
    gradients = _differentiate(grad_out.transpose(1, 2), out.transpose(1, 2), logsumexp, *arguments)
    return tuple(gradient.transpose(1, 2) for gradient in gradients)


def _random_state(query):
    """What PyTorch's kernels return beside the result for dropout, and its debugging: nothing here."""
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    return state, torch.zeros((), dtype=torch.uint64, device=query.device), query.new_empty(0)


def _forward_cuda(query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    _refuse(return_debug_mask=return_debug_mask)
    inputs, options = _arguments(query, key, value, dropout_p, is_causal, None, scale)
    # In query's layout, as PyTorch's own kernel gives it and promises to its compiler.
    out = torch.empty_like(query)
    _, lse = _run((query, key, value), inputs, options, out.transpose(1, 2))
    return out, lse, None, None, query.shape[2], key.shape[2], *_random_state(query)


def _backward_cuda(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, philox_seed,
    philox_offset, *, scale=None,
):  # fmt: skip
    arguments = _arguments(query, key, value, dropout_p, is_causal, None, scale)
    gradients = _differentiate(grad_out.transpose(1, 2), out.transpose(1, 2), logsumexp, *arguments)
    return tuple(gradient.transpose(1, 2) for gradient in gradients)


def _packed_arguments(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, is_causal, scale, window_left, window_right, seqused_k
):  # fmt: skip
    """flash3's tuples; tensors from (total, heads, head_dim), or (batch, seqlen, heads, head_dim) without lengths."""
    windows = (None if w is None or w < 0 else w for w in (window_left, window_right))
    options = (scale, is_causal, "bottom_right", *windows, 0.0, max_q, max_k, "automatic", 0)
    tensors = (_last_contiguous(t) for t in (query, key, value))
    return (*tensors, cum_seq_q, cum_seq_k, None, seqused_k, None, None), options


def _forward_packed(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None,
    window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None,
):  # fmt: skip
    _refuse(dropout_p=dropout_p, return_debug_mask=return_debug_mask)
    if alibi_slopes is not None:
        raise NotImplementedError("alibi_slopes: is given, but no engine serves it")
    out, lse = _run(
        (query, key, value),
        *_packed_arguments(
            query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, is_causal, scale, window_size_left,
            window_size_right, seqused_k,
        ),
    )  # fmt: skip
    return out, lse, *_random_state(query)


def _backward_packed(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, rng_state,
    unused, *, scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    _refuse(dropout_p=dropout_p)
    arguments = _packed_arguments(
        query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, is_causal, scale, window_size_left, window_size_right,
        None,
    )  # fmt: skip
    return tuple(_differentiate(grad_out, out, logsumexp, *arguments))
