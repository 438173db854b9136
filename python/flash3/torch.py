"""The door for PyTorch: custom operators with fake kernels and gradients, and a short way past them.

flash3.attention comes here with torch tensors. Where it is compiled or traced it becomes the operators
`flash3::attention_forward` and `flash3::attention_backward`. An eager call goes straight to the engine, under an
autograd.Function where a gradient is asked for: a custom operator costs 100 microseconds more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flash3 import _flash3
from flash3._outputs import has_unowned_rows, lse_shape, out_shape

__all__ = ["attend"]

# What both operators take; the tuples of flash3._flash3 in the same order.
_INPUTS = """Tensor query, Tensor key, Tensor value, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seqused_q,
    Tensor? seqused_k, Tensor? sinks, Tensor? bias"""
_OPTIONS = """float? softmax_scale, bool causal, str alignment, SymInt? window_left, SymInt? window_right,
    float softcap, SymInt? max_seqlen_q, SymInt? max_seqlen_k, str engine, SymInt num_threads"""
_INPUT_COUNT = 9
_DIFFERENTIABLE = (0, 1, 2, 7, 8)  # query, key, value, sinks, bias
_PLAIN_KINDS = (Tensor, torch.nn.Parameter)

# Looked up once: a call asks all of them.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_empty_like = torch.empty_like
_dispatch_modes = torch._C._len_torch_dispatch_stack


def attend(inputs, options, out, return_lse):
    """flash3.attention for torch tensors; its arguments as tuples, in the order of flash3._attention."""
    plain = not _is_compiling() and _is_eager(inputs[0]) and not _is_any_autocast_enabled()
    if plain and not (_is_grad_enabled() and _requires_grad(inputs)):
        out, lse = _run_forward(inputs, options, out, return_lse)
        return (out, lse) if return_lse else out
    return _attend(inputs, options, out, return_lse)


def _attend(inputs, options, out, return_lse):
    inputs = _autocast(inputs)
    wants_gradient = _is_grad_enabled() and _requires_grad(inputs)
    if out is not None and wants_gradient:
        raise ValueError("out: is given where a gradient is asked for; accepted is out, or a gradient (torch.no_grad)")
    if _is_compiling() or not _is_eager(inputs[0]):
        if out is not None:
            lse = torch.ops.flash3.attention_forward_into(*inputs, *options, out)
        else:
            run = _Function.apply if _is_transformed() else torch.ops.flash3.attention_forward
            out, lse = run(*inputs, *options, wants_gradient)
    elif wants_gradient:
        out, lse = _Function.apply(*inputs, *options, True)
    else:
        out, lse = _run_forward(inputs, options, out, return_lse)
    return (out, lse) if return_lse else out


def _requires_grad(inputs) -> bool:
    for index in _DIFFERENTIABLE:
        tensor = inputs[index]
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            return True
    return False


# torch.func's transforms wrap tensors without a class of their own.
_transforms = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)


def _is_transformed() -> bool:
    return not _is_compiling() and _transforms() is not None


def _is_eager(query) -> bool:
    """Whether this is an ordinary tensor in an eager program that nothing traces or transforms."""
    return type(query) in _PLAIN_KINDS and _dispatch_modes() == 0 and _transforms() is None


def _autocast(inputs):
    """Under torch.autocast, query, key and value in its dtype, as for torch's own attention."""
    device_type = inputs[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return inputs
    dtype = torch.get_autocast_dtype(device_type)

    def cast(tensor):
        narrows = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype is not torch.float64
        return tensor.to(dtype) if narrows else tensor

    query, key, value, *lengths, sinks, bias = inputs
    if isinstance(bias, Tensor) and bias.dtype is not torch.float32:
        bias = cast(bias)
    return (cast(query), cast(key), cast(value), *lengths, sinks, bias)


def _run_forward(inputs, options, out, return_lse):
    query, _, value = inputs[:3]
    partial = has_unowned_rows(inputs)
    if out is None:
        if partial:
            out = query.new_zeros(out_shape(query, value))
        elif query.is_contiguous() and (query is value or query.shape[-1:] == getattr(value, "shape", ())[-1:]):
            out = _empty_like(query)  # takes a fraction of new_empty's time
        else:
            out = query.new_empty(out_shape(query, value))
    lse = None
    if return_lse:
        lse = query.new_empty(lse_shape(query.shape), dtype=_rows_dtype(query))
        if partial:
            lse.fill_(float("-inf"))
    _flash3.forward(inputs, out, lse, options)
    return out, lse


def _rows_dtype(query):
    return torch.float64 if query.dtype is torch.float64 else torch.float32


def _split(arguments):
    return arguments[:_INPUT_COUNT], arguments[_INPUT_COUNT:]


def _forward_and_check(*arguments):
    inputs, (*options, backward_follows) = _split(arguments)
    if backward_follows:  # what backward would refuse is refused now, not in the middle of training
        _flash3.plan(inputs, tuple(options), True)
    return _run_forward(inputs, tuple(options), None, True)


_forward = torch.library.custom_op(
    "flash3::attention_forward",
    _forward_and_check,
    mutates_args=(),
    schema=f"({_INPUTS}, {_OPTIONS}, bool backward_follows) -> (Tensor, Tensor)",
)


@_forward.register_fake
def _(*arguments):
    query, _, value = arguments[:3]
    out = query.new_empty(out_shape(query, value))
    return out, query.new_empty(lse_shape(query.shape), dtype=_rows_dtype(query))


@torch.library.custom_op(
    "flash3::attention_forward_into",
    mutates_args=("out",),
    schema=f"({_INPUTS}, {_OPTIONS}, Tensor(a!) out) -> Tensor",
)
def _forward_into(*arguments):
    inputs, (*options, out) = _split(arguments)
    return _run_forward(inputs, tuple(options), out, True)[1]


@_forward_into.register_fake
def _(*arguments):
    query = arguments[0]
    return query.new_empty(lse_shape(query.shape), dtype=_rows_dtype(query))


def _run_backward(d_out, d_lse, out, lse, *arguments):
    """Gradients of query, key, value, sinks and bias; empty for an absent one."""
    inputs, options = _split(arguments)
    partial = any(tensor is not None for tensor in inputs[3:7])
    make = torch.zeros_like if partial else torch.empty_like
    gradients = [make(t, memory_format=torch.contiguous_format) for t in inputs[:3]]
    extra = [None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[7:9]]
    _flash3.backward(inputs, (out, lse, _dense(d_out), _dense(d_lse)), (*gradients, *extra), options)
    return (*gradients, *(lse.new_empty(0) if t is None else t for t in extra))


_backward = torch.library.custom_op(
    "flash3::attention_backward",
    _run_backward,
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor? d_lse, Tensor out, Tensor lse, {_INPUTS}, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_backward.register_fake
def _(d_out, d_lse, out, lse, *arguments):
    inputs = arguments[:_INPUT_COUNT]
    return tuple(
        lse.new_empty(0) if inputs[i] is None else torch.empty_like(inputs[i], memory_format=torch.contiguous_format)
        for i in _DIFFERENTIABLE
    )


def _dense(tensor):
    """Gradients come from autograd in any layout (expanded, for one): engines take a contiguous last dimension."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _save(ctx, inputs, output):
    tensors, (*options, _) = _split(inputs)
    ctx.save_for_backward(*output, *tensors)
    ctx.options = tuple(options)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, d_out, d_lse, run=torch.ops.flash3.attention_backward):
    out, lse, *tensors = ctx.saved_tensors
    count = _INPUT_COUNT + len(ctx.options) + 1
    if d_out is None and d_lse is None:
        return (None,) * count
    if d_out is None:
        d_out = torch.zeros_like(out)
    gradients = run(d_out, d_lse, out, lse, *tensors, *ctx.options)
    result = [None] * count
    for index, gradient in zip(_DIFFERENTIABLE, gradients):
        if tensors[index] is not None:
            result[index] = gradient
    return tuple(result)


_forward.register_autograd(_differentiate, setup_context=_save)


class _Function(torch.autograd.Function):
    """The forward operator in eager programs, and under torch.func, where a custom operator has no gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        run = _forward_and_check if _is_eager(arguments[0]) else torch.ops.flash3.attention_forward
        return run(*arguments)

    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx, d_out, d_lse):
        return _differentiate(ctx, d_out, d_lse, _FunctionBackward.apply)


class _FunctionBackward(torch.autograd.Function):
    """Likewise the backward operator, which has no gradients of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        run = _run_backward if _is_eager(arguments[0]) else torch.ops.flash3.attention_backward
        return run(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("flash3.attention has first derivatives only")


def _merge_batches(info, dims, arguments):
    """vmap's dimension becomes part of the batch, which attention treats each element of alike."""
    merged = []
    for tensor, dim in zip(arguments, dims):
        if isinstance(tensor, Tensor):
            tensor = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            tensor = tensor.flatten(0, 1)
        merged.append(tensor)
    return merged


def _split_batches(info, results):
    return tuple(t.unflatten(0, (info.batch_size, -1)) if t.numel() else t for t in results)


def _refuse_under_vmap(inputs):
    for name, tensor in zip(("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k", "sinks", "bias"), inputs[3:]):
        if tensor is not None:
            raise NotImplementedError(f"{name}: is given under torch.vmap, accepted there is None")


@_forward.register_vmap
def _(info, dims, *arguments):
    _refuse_under_vmap(arguments[:_INPUT_COUNT])
    results = torch.ops.flash3.attention_forward(*_merge_batches(info, dims, arguments))
    return _split_batches(info, results), (0, 0)


@_backward.register_vmap
def _(info, dims, *arguments):
    _refuse_under_vmap(arguments[4 : 4 + _INPUT_COUNT])
    results = torch.ops.flash3.attention_backward(*_merge_batches(info, dims, arguments))
    return _split_batches(info, results), (0, 0, 0, None, None)
