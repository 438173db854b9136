"""The public functions: which options there are, and which framework's door a call goes through."""

from __future__ import annotations

from flash3 import _flash3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal

# How each class of tensor is served, found at its first call.
_doors: dict[type, Callable[..., Any]] = {}


def attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    alignment: Literal["bottom_right", "top_left"] = "bottom_right",
    window_left: int | None = None,
    window_right: int | None = None,
    softcap: float = 0.0,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    seqused_q: Any = None,
    seqused_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    sinks: Any = None,
    bias: Any = None,
    return_lse: bool = False,
    out: Any = None,
    engine: Literal["automatic", "cuda", "cpu", "reference", "emulator"] = "automatic",
    num_threads: int = 0,
) -> Any:
    """softmax(softmax_scale * query key^T [softcap] [+ bias] [mask]) value.

    Shapes are (batch, seqlen, heads, head_dim), or (total, heads, head_dim) for variable length (with cu_seqlens_*).
    heads_q is a multiple of heads_kv: query head h reads key head h // (heads_q // heads_kv). Every tensor has a
    contiguous last dimension and otherwise any strides; nothing is copied or converted.

    Args:
        query: (batch, seqlen_q, heads_q, head_dim) or (total_q, heads_q, head_dim). float16, bfloat16 or float32 (and
            float64 with engine="reference"). head_dim is 1 to 256.
        key: (batch, seqlen_kv, heads_kv, head_dim) or (total_kv, heads_kv, head_dim); dtype and device of query.
        value: (batch, seqlen_kv, heads_kv, head_dim_v) or (total_kv, heads_kv, head_dim_v); likewise. head_dim_v is 1
            to 256.
        softmax_scale: multiplies query key^T. Default 1 / sqrt(head_dim).
        causal: no query sees a key after its own position.
        alignment: where positions are counted from if seqlen_q != seqlen_kv. "bottom_right": the last query stands at
            the last key. "top_left": the first query stands at the first key.
        window_left, window_right: the query at position p sees keys p - window_left ... p + window_right. None: no
            limit on that side. causal limits window_right to 0.
        softcap: if positive, scores become softcap * tanh(score / softcap) before bias and mask. 0: off.
        cu_seqlens_q, cu_seqlens_k: int32, (batch + 1): sequence b owns rows cu_seqlens[b] ... cu_seqlens[b + 1] - 1.
        seqused_q, seqused_k: int32, (batch): how many of a sequence's rows, from its first, are used. What later rows
            hold never matters; their output is 0 and their lse -inf (in a given `out` they are left as they are).
        max_seqlen_q, max_seqlen_k: the longest sequence of cu_seqlens_q or cu_seqlens_k, or any number above it. Only
            needed where cu_seqlens is on a GPU, whose lengths are not read back: a bound near the truth saves time
            there, a bound below it leaves rows out. Elsewhere a bound below it is refused. Default: the total.
        sinks: float32, (heads_q): one logit a head that joins the denominator of every row that sees a key.
        bias: (batch or 1, heads_q or 1, seqlen_q or 1, seqlen_kv), float32 or query's dtype: added to the scores
            after scale and softcap.
        return_lse: also return the natural log of the sum of exp(score) of each row.
        out: where to write the result, instead of a new tensor.
        engine: "automatic" takes the fastest that can run this problem here. "reference" is the float64 specification.
        num_threads: CPU threads; 0: every core that the process may use. The bits do not depend on it.

    Returns:
        out, (batch, seqlen_q, heads_q, head_dim_v) or (total_q, heads_q, head_dim_v), of the same kind as query; with
        return_lse a pair (out, lse), lse float32 of shape (batch, heads_q, seqlen_q) or (heads_q, total_q). A row that
        sees no key has out 0 and lse -inf. A NaN or inf reaches the rows that see it and no others.

    Raises:
        ValueError: an argument is refused; the text names it, what was given and what is accepted.
        TypeError: an argument is not of a kind that flash3 knows.
        NotImplementedError: the arguments are sound, but no engine that may run can do this (yet).
        Nothing has been written in any of these cases.

    On a GPU the work is queued on the stream that is current in query's framework, and the call does not wait for it.
    Safe to call from many threads at once; the interpreter lock is released while the engine works.
    """
    kind = type(query)
    door = _doors.get(kind) or _find_door(kind)
    return door(
        (query, key, value, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, sinks, bias),
        (
            softmax_scale,
            causal,
            alignment,
            window_left,
            window_right,
            softcap,
            max_seqlen_q,
            max_seqlen_k,
            engine,
            num_threads,
        ),
        out,
        return_lse,
    )


def plan(
    query: Any,
    key: Any,
    value: Any,
    *,
    backward: bool = False,
    softmax_scale: float | None = None,
    causal: bool = False,
    alignment: Literal["bottom_right", "top_left"] = "bottom_right",
    window_left: int | None = None,
    window_right: int | None = None,
    softcap: float = 0.0,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    seqused_q: Any = None,
    seqused_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    sinks: Any = None,
    bias: Any = None,
    engine: Literal["automatic", "cuda", "cpu", "reference", "emulator"] = "automatic",
    num_threads: int = 0,
) -> _flash3.Plan:
    """What attention() would run for these arguments, and why; print() it. Runs nothing and allocates nothing.

    Args:
        backward: the plan of the backward pass, with gradients of everything given, instead of the forward's.
        others: as for attention().

    Raises:
        As attention() would.
    """
    return _flash3.plan(
        (query, key, value, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, sinks, bias),
        (
            softmax_scale,
            causal,
            alignment,
            window_left,
            window_right,
            softcap,
            max_seqlen_q,
            max_seqlen_k,
            engine,
            num_threads,
        ),
        backward,
    )


def _find_door(kind: type) -> Callable[..., Any]:
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if package == "numpy":
            from flash3._numpy import attend
        elif package == "torch":
            from flash3.torch import attend
        elif package in ("jax", "jaxlib"):
            from flash3.jax import attend
        else:
            continue
        break
    else:
        from flash3._dlpack import attend
    _doors[kind] = attend
    return attend
