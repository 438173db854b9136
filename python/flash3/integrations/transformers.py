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

    Causal masks, sliding windows, softcap, sinks and shared key heads are the engine's own. Padding is a bias of one
    row a sequence on a CPU; on a GPU, whose engine takes no bias yet, the padded rows are left out and what remains is
    of variable length. Any other mask (packed sequences, chunks, compiled static caches, a model's own overlays) becomes
    a bias of shape (batch, 1, seqlen_q, seqlen_kv).
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
    """None: the layer's own causal band. (batch, n) booleans: that band on the first n keys, and which of them are no
    padding. (batch, 1, q_length, kv_length) booleans: the whole mask."""
    used = kv_length  # keys up to the last query's
    if not torch.compiler.is_compiling():
        used = int(q_offset) + q_length - kv_offset
    ends_together = q_offset + q_length == kv_offset + used
    if not (ends_together and 0 < used <= kv_length and _is_causal_band(mask_function)):
        others.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        return masking_utils.sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **others
        )
    padding = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        return padding[:, kv_offset : kv_offset + used]
    if used == kv_length:
        return None
    return torch.ones(batch_size, used, dtype=torch.bool, device=others.get("device"))


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
    mask, padding = attention_mask, None
    if mask is not None and mask.dim() == 4:
        causal, window = False, None
        mask = mask[..., : key.shape[2]]
    elif mask is not None:
        key, value = key[:, :, : mask.shape[1]], value[:, :, : mask.shape[1]]
        mask, padding = None, mask
        if not torch.compiler.is_compiling() and padding.all():
            padding = None
    options = {
        "softmax_scale": scaling,
        "causal": bool(causal),
        "window_left": None if window is None else window - 1,
        "softcap": softcap or 0.0,
        "sinks": None if s_aux is None else s_aux.float(),
    }
    tensors = [t.transpose(1, 2) for t in (query, key, value)]
    if padding is not None:
        packing = _packing(padding, query.shape[2]) if position_bias is None and _packs(query) else None
        if packing is not None and (window is None or packing.without_gaps):
            return packing.attend(*tensors, options), None
        mask = padding[:, None, None, :]
    bias = None
    if mask is not None:
        bias = mask.float()
        if mask.dtype is torch.bool:
            # Finite, so that a row without a key (a padded query) is harmless noise, as in eager attention.
            bias = torch.zeros_like(bias).masked_fill_(~mask, torch.finfo(torch.float32).min)
    if position_bias is not None:
        bias = position_bias.float() if bias is None else bias + position_bias.float()
    return attention(*(_last_contiguous(t) for t in tensors), bias=bias, **options), None


def _packs(query) -> bool:
    """Whether padded rows are left out, rather than masked by a bias."""
    return query.device.type == "cuda"


class _Packing:
    """The rows of a padded batch that are no padding, one sequence after the other."""

    def __init__(self, padding, seqlen_q):
        rows_q = padding[:, padding.shape[1] - seqlen_q :]  # queries stand at the last keys
        self.rows_q, self.cu_seqlens_q, self.max_seqlen_q = self._pack(rows_q)
        self.rows_k, self.cu_seqlens_k, self.max_seqlen_k = self._pack(padding)
        starts = padding[:, :1].sum(1) + (padding[:, 1:] & ~padding[:, :-1]).sum(1)
        self.without_gaps = bool((starts <= 1).all())

    @staticmethod
    def _pack(kept):
        lengths = kept.sum(1)
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return kept.flatten().nonzero().flatten(), cu_seqlens, int(lengths.max())

    def attend(self, query, key, value, options):
        """Padded rows of the result are 0."""
        batch, seqlen_q = query.shape[:2]
        query = query.flatten(0, 1)[self.rows_q]
        key, value = (t.flatten(0, 1)[self.rows_k] for t in (key, value))
        lengths = {
            "cu_seqlens_q": self.cu_seqlens_q,
            "cu_seqlens_k": self.cu_seqlens_k,
            "max_seqlen_q": self.max_seqlen_q,
            "max_seqlen_k": self.max_seqlen_k,
        }
        out = attention(query, key, value, **lengths, **options)
        whole = out.new_zeros(batch * seqlen_q, *out.shape[1:])
        return whole.index_put((self.rows_q,), out).unflatten(0, (batch, seqlen_q))


def _packing(padding, seqlen_q):
    """Made once for a mask, which every layer is given."""
    known = getattr(padding, "_flash3_packing", {})
    if seqlen_q not in known:
        known[seqlen_q] = _Packing(padding, seqlen_q)
        padding._flash3_packing = known
    return known[seqlen_q]


def _last_contiguous(tensor):
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
