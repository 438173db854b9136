"""The shapes of what attention returns, for every door that allocates it."""

from __future__ import annotations


def out_shape(query, value) -> tuple[int, ...]:
    """query's shape with value's last extent. Bad tensors give some shape: the engine's check names the fault."""
    shape = query.shape
    last = getattr(value, "shape", ())[-1:]
    return shape if shape[-1:] == last else (*shape[:-1], *last)


def lse_shape(shape) -> tuple[int, ...]:
    """Of query's shape: (batch, heads, seqlen_q) for a fixed batch, (heads, total_q) for variable length."""
    if len(shape) == 4:
        return (shape[0], shape[2], shape[1])
    return (shape[1], shape[0]) if len(shape) == 3 else ()


def has_unowned_rows(inputs) -> bool:
    """Whether rows of the output may belong to no sequence: no engine writes those."""
    return inputs[3] is not None or inputs[5] is not None  # cu_seqlens_q, seqused_q


def refuse_gradient(inputs) -> None:
    """Only PyTorch's own door records a graph: elsewhere, a tensor that wants a gradient would silently get none."""
    for tensor in inputs:
        if getattr(tensor, "requires_grad", False):
            raise ValueError(
                "an input requires a gradient, but query is no PyTorch tensor: accepted is an input that was detached"
            )
