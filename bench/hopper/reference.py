"""Attention of chosen rows in float64 on the GPU, for problems of which no score matrix could be stored."""

import math

import torch


def relative_error(out, want):
    return ((out - want).norm() / want.norm()).item()


def reference_rows(inputs, rows, chunk_bytes=1 << 30):
    """Attention of these rows (ascending, counted over all sequences) in float64: (rows, heads, head_dim)."""
    problem = inputs.problem
    total = problem.tokens
    q, k, v = (x.reshape(total, *x.shape[-2:]) for x in (inputs.query, inputs.key, inputs.value))
    out = torch.zeros(len(rows), problem.heads, v.shape[-1], dtype=torch.float64, device=q.device)
    first, at = 0, 0
    for length in problem.seqlens:
        mine = [row - first for row in rows[at:] if row < first + length]
        if mine:
            sequence = slice(first, first + length)
            index = torch.tensor(mine, device=q.device)
            queries = q[sequence][index].double() * inputs.scale
            out[at : at + len(mine)] = attend_rows(queries, index, k[sequence], v[sequence], problem, chunk_bytes)
        at += len(mine)
        first += length
    return out


def attend_rows(queries, index, k, v, problem, chunk_bytes):
    """Rows `index` of one sequence; the keys pass by in chunks under a running maximum and sum."""
    rows, heads, d = queries.shape
    # (heads_kv, group * rows, d): the query heads that share a KV head are rows of one product.
    queries = queries.transpose(0, 1).reshape(problem.heads_kv, -1, d)
    row = index.repeat(heads // problem.heads_kv)[:, None]
    maximum = torch.full((*queries.shape[:2], 1), -math.inf, dtype=torch.float64, device=k.device)
    weight, out = torch.zeros_like(maximum), torch.zeros_like(queries)
    chunk = max(256, chunk_bytes // (8 * problem.heads_kv * max(d, queries.shape[1])))
    for start in range(0, k.shape[0], chunk):
        keys, values = (x[start : start + chunk].transpose(0, 1).double() for x in (k, v))
        scores = queries @ keys.transpose(1, 2)
        column = torch.arange(start, start + keys.shape[1], device=k.device)[None]
        if problem.causal:
            scores.masked_fill_(column > row, -math.inf)
        if problem.window is not None:
            scores.masked_fill_(column <= row - problem.window, -math.inf)
        new = torch.maximum(maximum, scores.amax(2, keepdim=True))
        shift = torch.where(new == -math.inf, 0, new)
        scores.sub_(shift).exp_()
        old = (maximum - shift).exp()
        weight = weight * old + scores.sum(2, keepdim=True)
        out = out * old + scores @ values
        maximum = new
    return (out / weight).reshape(heads, rows, d).transpose(0, 1)
