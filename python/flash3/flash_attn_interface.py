"""A drop-in for FlashAttention-3's module of this name: its functions, argument names, order, defaults and results.

    from flash3 import flash_attn_interface   # instead of: import flash_attn_interface

What no engine serves yet raises NotImplementedError naming the argument. `num_splits`, `pack_gqa`, `sm_margin` and
`deterministic` say how a GPU is to divide the work: engines that have nothing to divide compute the same without them.
"""

from __future__ import annotations

import torch

from flash3._flash3 import plan
from flash3.torch import attend

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


def flash_attn_func(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """Attention of a fixed batch.

    Args:
        q: (batch, seqlen_q, heads_q, head_dim). k: (batch, seqlen_kv, heads_kv, head_dim). v: (batch, seqlen_kv,
            heads_kv, head_dim_v).
        softmax_scale: default 1 / sqrt(head_dim).
        causal: aligned to the bottom right corner.
        window_size: (left, right), -1 for no limit.
        softcap: 0 is off.
        num_splits, pack_gqa, deterministic, sm_margin: do not change what is computed.
        return_attn_probs: return the log-sum-exp too; no probabilities exist.

    Returns:
        out (batch, seqlen_q, heads_q, head_dim_v), or with return_attn_probs (out, lse), lse float32
        (batch, heads_q, seqlen_q).
    """
    if not (qv is None and q_descale is None and k_descale is None and v_descale is None and attention_chunk == 0):
        _refuse(qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale, attention_chunk=attention_chunk)
    if not (type(num_splits) is int and pack_gqa is None and type(sm_margin) is int and sm_margin == 0):
        _check_hints(num_splits, pack_gqa, sm_margin)
    return _attend(q, k, v, softmax_scale, causal, window_size, softcap, return_attn_probs)


def flash_attn_qkvpacked_func(
    qkv,
    softmax_scale=None,
    causal=False,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    deterministic=False,
    num_heads_q=None,
    sm_margin=0,
    return_attn_probs=False,
):
    """Attention of a packed tensor, (batch, seqlen, 3, heads, head_dim), or (batch, seqlen, heads_q + 2 heads_kv,
    head_dim) with num_heads_q. Otherwise as flash_attn_func."""
    _refuse(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale, attention_chunk=attention_chunk)
    _check_hints(1, None, sm_margin)
    if qkv.dim() == 5 and qkv.shape[2] == 3:
        q, k, v = qkv.unbind(2)
    elif qkv.dim() == 4 and num_heads_q is not None and (qkv.shape[2] - num_heads_q) % 2 == 0:
        heads_kv = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = qkv.split([num_heads_q, heads_kv, heads_kv], 2)
    else:
        raise ValueError(
            f"qkv: shape is {tuple(qkv.shape)} with num_heads_q {num_heads_q}, accepted are (batch, seqlen, 3, heads, "
            "head_dim), and (batch, seqlen, num_heads_q + 2 heads_kv, head_dim) with num_heads_q"
        )
    return _attend(q, k, v, softmax_scale, causal, window_size, softcap, return_attn_probs)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    """Attention of sequences of various lengths, packed one after the other.

    Args:
        q: (total_q, heads_q, head_dim). k: (total_kv, heads_kv, head_dim). v: (total_kv, heads_kv, head_dim_v).
        cu_seqlens_q, cu_seqlens_k: int32, (batch + 1). Sequence b owns rows cu_seqlens[b] ... cu_seqlens[b + 1] - 1.
        max_seqlen_q, max_seqlen_k: the longest sequences, or any number above them: bounds for a GPU, which does not read
            cu_seqlens back. On a GPU a bound below the truth leaves rows out; on a CPU it is refused.
        seqused_q, seqused_k: int32, (batch): how many of a sequence's rows are used.
        others: as flash_attn_func.

    Returns:
        out (total_q, heads_q, head_dim_v), or with return_attn_probs (out, lse), lse float32 (heads_q, total_q).
    """
    if not (qv is None and q_descale is None and k_descale is None and v_descale is None and attention_chunk == 0):
        _refuse(qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale, attention_chunk=attention_chunk)
    if not (type(num_splits) is int and pack_gqa is None and type(sm_margin) is int and sm_margin == 0):
        _check_hints(num_splits, pack_gqa, sm_margin)
    lengths = (cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k)
    return _attend(
        q, k, v, softmax_scale, causal, window_size, softcap, return_attn_probs, lengths, max_seqlen_q, max_seqlen_k
    )


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    page_table=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    max_seqlen_q=None,
    rotary_seqlens=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    rotary_interleaved=True,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
    return_softmax_lse=False,
):
    """Attention over a cache of keys and values, into which new ones are written first. No gradient.

    Args:
        q: (batch, seqlen_q, heads_q, head_dim), or (total_q, heads_q, head_dim) with cu_seqlens_q.
        k_cache, v_cache: (batch, seqlen_cache, heads_kv, head_dim or head_dim_v).
        k, v: (batch, seqlen_new, heads_kv, ...), written into the caches from row cache_seqlens[b] on.
        rotary_seqlens, rotary_interleaved: say how rotary_cos and rotary_sin are applied, which are not served.
        cache_seqlens: an int or int32 (batch): how many rows of the cache hold keys. Default: all; needed with k and v.
        others: as flash_attn_func.

    Returns:
        out, or with return_softmax_lse (out, lse, out_accum, lse_accum); nothing is split, so the last two are empty.
    """
    _refuse(
        qv=qv,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        page_table=page_table,
        cu_seqlens_k_new=cu_seqlens_k_new,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        attention_chunk=attention_chunk,
    )
    _check_hints(num_splits, pack_gqa, sm_margin)
    if scheduler_metadata is not None:
        _check_metadata(scheduler_metadata, q, k_cache, v_cache)
    if isinstance(cache_seqlens, int):
        cache_seqlens = torch.full((k_cache.shape[0],), cache_seqlens, dtype=torch.int32, device=k_cache.device)
    if (k is None) != (v is None):
        raise ValueError("k, v: one is given without the other, accepted are both or neither")
    with torch.no_grad():
        if k is not None:
            if cache_seqlens is None:
                raise ValueError("cache_seqlens: is None, accepted with k and v is an int or a tensor")
            _check_new(k, k_cache, "k", "k_cache")
            _check_new(v, v_cache, "v", "v_cache")
            if k.shape[1] != v.shape[1]:
                raise ValueError(f"v: has {v.shape[1]} rows, accepted is k's {k.shape[1]}")
            rows = cache_seqlens.to(torch.int64)[:, None] + torch.arange(k.shape[1], device=k_cache.device)
            if rows.device.type == "cpu" and rows.numel() and int(rows.max()) >= k_cache.shape[1]:
                raise ValueError(
                    f"k: its {k.shape[1]} rows end at row {int(rows.max()) + 1}, beyond the cache's {k_cache.shape[1]}"
                )
            cache_seqlens = cache_seqlens + k.shape[1]
        lengths = (cu_seqlens_q, None, None, cache_seqlens)
        arguments = (q, k_cache, v_cache, softmax_scale, causal, window_size, softcap)
        if k is not None:
            if not torch.compiler.is_compiling():  # what attention will refuse is refused before the caches change
                _attend(*arguments, False, lengths, max_seqlen_q, run=plan)
            index = torch.arange(k_cache.shape[0], device=k_cache.device)[:, None]
            k_cache[index, rows] = k
            v_cache[index, rows] = v
        out, lse = _attend(*arguments, True, lengths, max_seqlen_q)
    if not return_softmax_lse:
        return out
    return out, lse, *(torch.empty(0, dtype=torch.float32, device=out.device) for _ in range(2))


def flash_attn_combine(out_partial, lse_partial, out=None, out_dtype=None):
    """Merge attention over parts of the keys into attention over all of them.

    Args:
        out_partial: float32, (parts, batch, seqlen, heads, head_dim).
        lse_partial: float32, (parts, batch, seqlen, heads). A part with -inf has no weight, whatever its out holds.
        out: where to write. out_dtype: default that of out, or float32.

    Returns:
        out (batch, seqlen, heads, head_dim) and lse (batch, seqlen, heads), -inf (and out 0) where no part has weight.
    """
    if out_partial.dtype is not torch.float32 or lse_partial.dtype is not torch.float32:
        given = f"{out_partial.dtype} and {lse_partial.dtype}"
        raise ValueError(f"out_partial, lse_partial: dtypes are {given}, accepted is float32")
    if out_partial.shape[:-1] != lse_partial.shape:
        given = f"{tuple(out_partial.shape)} and {tuple(lse_partial.shape)}"
        raise ValueError(f"lse_partial: shapes are {given}, accepted is that of out_partial without head_dim")
    lse = torch.logsumexp(lse_partial, 0)
    weights = torch.exp(lse_partial - lse).masked_fill_(lse_partial == float("-inf"), 0).unsqueeze(-1)
    merged = (torch.where(weights == 0, 0, out_partial) * weights).sum(0)
    if out is not None:
        return out.copy_(merged), lse
    return merged.to(out_dtype or torch.float32), lse


def get_scheduler_metadata(
    batch_size,
    max_seqlen_q,
    max_seqlen_k,
    num_heads_q,
    num_heads_kv,
    headdim,
    cache_seqlens,
    qkv_dtype=torch.bfloat16,
    headdim_v=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    cache_leftpad=None,
    page_size=None,
    max_seqlen_k_new=0,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    has_softcap=False,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
):
    """What flash_attn_with_kvcache takes as scheduler_metadata. No engine needs a schedule made beforehand: it says for
    which call it was made, and that is all.

    Args:
        batch_size, num_heads_q, num_heads_kv, headdim, headdim_v: of the call to come. headdim_v: default headdim.
        cache_seqlens: int32, (batch_size).
        others: do not change what is returned.

    Returns:
        int32, (6), on the device of cache_seqlens. In CPU memory the call is checked against it.
    """
    _refuse(
        cu_seqlens_k_new=cu_seqlens_k_new,
        cache_leftpad=cache_leftpad,
        page_size=page_size,
        attention_chunk=attention_chunk,
    )
    _check_hints(num_splits, pack_gqa, sm_margin)
    shape = (batch_size, num_heads_q, num_heads_kv, headdim, headdim if headdim_v is None else headdim_v)
    return torch.tensor((_METADATA, *shape), dtype=torch.int32, device=cache_seqlens.device)


_METADATA = 0x666C6133  # that a tensor is get_scheduler_metadata's


def _check_metadata(metadata, q, k_cache, v_cache):
    if not isinstance(metadata, torch.Tensor) or metadata.dtype is not torch.int32 or metadata.shape != (6,):
        raise ValueError("scheduler_metadata: accepted is what flash3's get_scheduler_metadata returned, or None")
    if metadata.device != q.device:
        raise ValueError(f"scheduler_metadata: is on {metadata.device}, accepted is {q.device}, where q is")
    if metadata.device.type == "cpu" and not torch.compiler.is_compiling():
        given = metadata.tolist()
        call = [_METADATA, k_cache.shape[0], q.shape[-2], k_cache.shape[-2], q.shape[-1], v_cache.shape[-1]]
        if given != call:
            raise ValueError(
                f"scheduler_metadata: is for batch_size, num_heads_q, num_heads_kv, headdim, headdim_v {given[1:]}, "
                f"accepted is one for {call[1:]}"
            )


def _refuse(**arguments):
    for name, given in arguments.items():
        if given is not None and not (name == "attention_chunk" and given == 0):
            raise NotImplementedError(f"{name}: is given, but no engine serves it")


def _check_hints(num_splits, pack_gqa, sm_margin):
    if not isinstance(num_splits, int) or not isinstance(sm_margin, int) or sm_margin < 0:
        raise ValueError(f"num_splits, sm_margin: are {num_splits!r} and {sm_margin!r}, accepted are integers")
    if pack_gqa not in (None, True, False):
        raise ValueError(f"pack_gqa: is {pack_gqa!r}, accepted is None, True or False")


def _last_contiguous(tensor):
    try:
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
    except (AttributeError, TypeError):
        raise TypeError(f"q, k, v: one is {type(tensor).__name__}, accepted are PyTorch tensors") from None


def _check_new(new, cache, name, cache_name):
    if new.dim() != 4 or new.shape[0] != cache.shape[0] or new.shape[2:] != cache.shape[2:]:
        raise ValueError(
            f"{name}: shape is {tuple(new.shape)}, accepted is that of {cache_name}, {tuple(cache.shape)}, but for seqlen"
        )
    if new.dtype is not cache.dtype or new.device != cache.device:
        raise ValueError(
            f"{name}: is {new.dtype} on {new.device}, accepted is {cache.dtype} on {cache.device}, as {cache_name} is"
        )


_NO_LENGTHS = (None, None, None, None)


def _attend(
    q, k, v, softmax_scale, causal, window_size, softcap, return_lse, lengths=_NO_LENGTHS, max_seqlen_q=None,
    max_seqlen_k=None, run=None,
):  # fmt: skip
    try:
        left, right = window_size
    except (TypeError, ValueError):
        raise TypeError(f"window_size: is {window_size!r}, accepted is a pair of integers (left, right)") from None
    inputs = (_last_contiguous(q), _last_contiguous(k), _last_contiguous(v), *lengths, None, None)
    options = (
        softmax_scale, causal, "bottom_right", None if left < 0 else left, None if right < 0 else right, softcap,
        max_seqlen_q, max_seqlen_k, "automatic", 0,
    )  # fmt: skip
    if run is not None:
        return run(inputs, options, False)
    return attend(inputs, options, None, return_lse)
