"""Attention by the definition, in float64, and the tolerance that a result of lower precision is held to."""

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def _sequences(cu_seqlens, seqused, tensor):
    """(batch index or None, first row, rows) of each sequence."""
    if cu_seqlens is None:
        lengths = [tensor.shape[1]] * tensor.shape[0] if seqused is None else [int(n) for n in seqused]
        return [(b, 0, n) for b, n in enumerate(lengths)]
    starts = [int(c) for c in cu_seqlens]
    lengths = np.diff(starts) if seqused is None else seqused
    return [(None, start, int(n)) for start, n in zip(starts, lengths)]


def attention(
    query, key, value, *, softmax_scale=None, causal=False, alignment="bottom_right", window_left=None,
    window_right=None, softcap=0.0, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, sinks=None,
    bias=None, rounded=None,
):  # fmt: skip
    """(out, lse) in float64. With `rounded`, probabilities and out are rounded to that dtype on the way, as in the
    plainest computation of that precision: its error is what nobody can be asked to beat."""
    q64, k64, v64 = (np.asarray(t).astype(np.float64) for t in (query, key, value))
    round_to = (lambda x: x) if rounded is None else (lambda x: x.astype(rounded).astype(np.float64))
    scale = 1 / np.sqrt(q64.shape[-1]) if softmax_scale is None else softmax_scale
    heads_q, heads_kv = q64.shape[-2], k64.shape[-2]
    out = np.zeros((*q64.shape[:-1], v64.shape[-1]))
    lse_shape = (q64.shape[0], heads_q, q64.shape[1]) if q64.ndim == 4 else (heads_q, q64.shape[0])
    lse = np.full(lse_shape, -np.inf)
    pairs = zip(_sequences(cu_seqlens_q, seqused_q, q64), _sequences(cu_seqlens_k, seqused_k, k64))
    for n, ((qb, q_row, len_q), (kb, k_row, len_k)) in enumerate(pairs):
        rows = (slice(q_row, q_row + len_q),) if qb is None else (qb, slice(q_row, q_row + len_q))
        keys = (slice(k_row, k_row + len_k),) if kb is None else (kb, slice(k_row, k_row + len_k))
        offset = len_k - len_q if alignment == "bottom_right" else 0
        distance = np.arange(len_k)[None, :] - np.arange(len_q)[:, None] - offset
        visible = np.ones((len_q, len_k), bool)
        if window_left is not None:
            visible &= distance >= -window_left
        right = min(0 if causal else np.inf, np.inf if window_right is None else window_right)
        visible &= distance <= right
        for h in range(heads_q):
            g = h // (heads_q // heads_kv)
            scores = scale * q64[(*rows, h)] @ k64[(*keys, g)].T
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if bias is not None:
                whole = np.asarray(bias).astype(np.float64)
                whole = np.broadcast_to(whole, (max(whole.shape[0], n + 1), heads_q, *whole.shape[2:]))
                scores = scores + whole[n, h, : len_q if whole.shape[2] > 1 else 1, :len_k]
            for i in range(len_q):
                seen = np.flatnonzero(visible[i])
                if seen.size == 0:
                    continue
                logits = scores[i, seen]
                if sinks is not None:
                    logits = np.append(logits, float(sinks[h]))
                top = logits.max()
                total = np.exp(logits - top).sum()
                p = round_to(np.exp(scores[i, seen] - top))
                out[(*rows, h)][i] = p @ v64[(*keys, g)][seen] / total
                lse[(*((qb,) if qb is not None else ()), h, q_row + i)] = top + np.log(total)
    return round_to(out), lse


def check(out, lse, query, key, value, **options):
    """Within twice the error of the plainest computation in out's precision, plus one unit in the last place."""
    out64 = np.asarray(out).astype(np.float64)
    dtype = np.asarray(query).dtype
    exact, exact_lse = attention(query, key, value, **options)
    eps = 2.0**-8 if dtype == BFLOAT16 else float(np.finfo(dtype).eps)
    rounded = None if dtype == np.float64 else dtype
    plain = attention(query, key, value, rounded=rounded, **options)[0]
    size = np.abs(exact).max(initial=0)
    tolerance = 2 * np.abs(plain - exact).max(initial=0) + eps * size
    if eps < 1e-6:  # the plainest computation in these precisions also accumulates in them
        tolerance += 32 * eps * size
    error = np.abs(out64 - exact).max(initial=0)
    assert error <= tolerance, f"error {error:.3g} is above {tolerance:.3g}"
    if lse is not None:
        lse64 = np.asarray(lse).astype(np.float64)
        assert (np.isneginf(lse64) == np.isneginf(exact_lse)).all()
        finite = np.isfinite(exact_lse)
        lse_eps = 1e-13 if dtype == np.float64 else 1e-5
        np.testing.assert_allclose(lse64[finite], exact_lse[finite], rtol=lse_eps, atol=lse_eps)
