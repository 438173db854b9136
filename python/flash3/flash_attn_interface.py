"""A drop-in for FlashAttention-3's module of this name: its functions, argument names, order, defaults and results.

    from flash3 import flash_attn_interface   # instead of: import flash_attn_interface

What no engine serves yet raises NotImplementedError naming the argument. `num_splits`, `pack_gqa`, `sm_margin` and
`deterministic` say how a GPU is to divide the work: engines that have nothing to divide compute the same without them.
"""

from __future__ import annotations

import torch

from flash3._attention import attention

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
    _refuse(qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale, attention_chunk=attention_chunk)
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
        max_seqlen_q, max_seqlen_k: the longest sequences. Lengths are taken from cu_seqlens; these do not change them.
        seqused_q, seqused_k: int32, (batch): how many of a sequence's rows are used.
        others: as flash_attn_func.

    Returns:
        out (total_q, heads_q, head_dim_v), or with return_attn_probs (out, lse), lse float32 (heads_q, total_q).
    """
    _refuse(qv=qv, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale, attention_chunk=attention_chunk)
    _check_hints(num_splits, pack_gqa, sm_margin)
    lengths = {
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
        "seqused_q": seqused_q,
        "seqused_k": seqused_k,
    }
    return _attend(q, k, v, softmax_scale, causal, window_size, softcap, return_attn_probs, **lengths)


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
        rotary_seqlens=rotary_seqlens,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        attention_chunk=attention_chunk,
        scheduler_metadata=scheduler_metadata,
    )
    _check_hints(num_splits, pack_gqa, sm_margin)
    batch, seqlen_cache = k_cache.shape[:2]
    if isinstance(cache_seqlens, int):
        cache_seqlens = torch.full((batch,), cache_seqlens, dtype=torch.int32, device=k_cache.device)
    if (k is None) != (v is None):
        raise ValueError("k, v: one is given without the other, accepted are both or neither")
    with torch.no_grad():
        if k is not None:
            if cache_seqlens is None:
                raise ValueError("cache_seqlens: is None, accepted with k and v is an int or a tensor")
            _append(k_cache, k, cache_seqlens, seqlen_cache, "k")
            _append(v_cache, v, cache_seqlens, seqlen_cache, "v")
            cache_seqlens = cache_seqlens + k.shape[1]
        lengths = {"cu_seqlens_q": cu_seqlens_q, "seqused_k": cache_seqlens}
        out, lse = _attend(q, k_cache, v_cache, softmax_scale, causal, window_size, softcap, True, **lengths)
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
    """No engine takes a schedule that was made beforehand. Raises NotImplementedError."""
    raise NotImplementedError("get_scheduler_metadata: no engine takes a schedule that was made beforehand")


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
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _append(cache, new, cache_seqlens, seqlen_cache, name):
    if new.shape[0] != cache.shape[0] or new.shape[2:] != cache.shape[2:]:
        given = f"{tuple(new.shape)} beside a cache of {tuple(cache.shape)}"
        raise ValueError(f"{name}: shape is {given}, accepted is the cache's but for seqlen")
    rows = cache_seqlens.to(torch.int64)[:, None] + torch.arange(new.shape[1], device=cache.device)
    if rows.device.type == "cpu" and rows.numel() and int(rows.max()) >= seqlen_cache:
        raise ValueError(
            f"{name}: its {new.shape[1]} rows end at row {int(rows.max()) + 1}, beyond the cache's {seqlen_cache}"
        )
    cache[torch.arange(cache.shape[0], device=cache.device)[:, None], rows] = new


def _attend(q, k, v, softmax_scale, causal, window_size, softcap, return_lse, **lengths):
    left, right = window_size
    return attention(
        _last_contiguous(q),
        _last_contiguous(k),
        _last_contiguous(v),
        softmax_scale=softmax_scale,
        causal=causal,
        window_left=None if left < 0 else left,
        window_right=None if right < 0 else right,
        softcap=softcap,
        return_lse=return_lse,
        **lengths,
    )
