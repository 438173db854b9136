"""The door for JAX: attention under jit, grad and vmap, through XLA's foreign-function interface on the CPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flash3 import _attention, _flash3
from flash3._outputs import lse_shape, out_shape, refuse_gradient

__all__ = ["attention"]

jax.ffi.register_ffi_target("flash3_forward", _flash3.jax_forward, platform="cpu")
jax.ffi.register_ffi_target("flash3_backward", _flash3.jax_backward, platform="cpu")

# The codes of flash3::Engine.
_ENGINES = {"automatic": 0, "cuda": 1, "cpu": 2, "reference": 3, "emulator": 4}


def attention(query, key, value, **options):
    """flash3.attention for JAX arrays, and for whatever jax.numpy.asarray takes; same keywords but for `out`.

    Works under jax.jit, jax.grad (first derivatives of out and lse in query, key, value, sinks and bias) and jax.vmap.
    Options are Python values, fixed when a program is traced. What can be checked then raises ValueError, TypeError or
    NotImplementedError there; lengths that only the running program knows raise JAX's own runtime error, with the
    same text.
    """
    return _attention.attention(*(jnp.asarray(t) for t in (query, key, value)), **options)


def attend(inputs, options, out, return_lse):
    if out is not None:
        raise ValueError("out: is given, but JAX arrays cannot be written; accepted is None")
    refuse_gradient(inputs)
    _check(inputs, options, False)
    present = tuple(tensor is not None for tensor in inputs[3:])
    run = _functions(_static(inputs[0], options), present, options)
    result = run(*(jnp.asarray(tensor) for tensor in inputs if tensor is not None))
    return result if return_lse else result[0]


def _check(inputs, options, backward):
    """Everything that shapes, types and options say is checked while tracing, in flash3's words."""
    _flash3.plan(tuple(_stand_in(tensor, index) for index, tensor in enumerate(inputs)), options, backward)


def _stand_in(tensor, index):
    """An array of a tracer's shape and type that takes no memory. Lengths are 0: sound, whatever the true ones are."""
    if isinstance(tensor, jax.core.Tracer):
        last = np.zeros(tensor.shape[-1:], tensor.dtype)
        return last if 3 <= index <= 6 else np.broadcast_to(last, tensor.shape)
    return np.asarray(tensor) if isinstance(tensor, jax.Array) else tensor


def _static(query, options):
    """The options as attributes of the foreign call."""
    softmax_scale, causal, alignment, window_left, window_right, softcap, engine, num_threads = options
    if softmax_scale is None:
        softmax_scale = 1.0 / float(query.shape[-1]) ** 0.5
    return (
        ("softmax_scale", np.float64(softmax_scale)),
        ("causal", np.int64(bool(causal))),
        ("top_left", np.int64(alignment == "top_left")),
        ("window_left", np.int64(-1 if window_left is None else window_left)),
        ("window_right", np.int64(-1 if window_right is None else window_right)),
        ("softcap", np.float64(softcap)),
        ("engine", np.int64(_ENGINES[engine])),
        ("num_threads", np.int64(num_threads)),
    )


@functools.lru_cache(maxsize=1024)
def _functions(attributes, present, options):
    """attention of flat arrays (query, key, value and the present others), differentiable and batchable."""
    attributes = dict(attributes, present=np.int64(sum(bit << i for i, bit in enumerate(present))))

    def call_forward(*arrays):
        query, _, value = arrays[:3]
        rows = jnp.float64 if query.dtype == jnp.float64 else jnp.float32
        results = (
            jax.ShapeDtypeStruct(out_shape(query, value), query.dtype),
            jax.ShapeDtypeStruct(lse_shape(query.shape), rows),
        )
        return tuple(jax.ffi.ffi_call("flash3_forward", results)(*arrays, **attributes))

    def call_backward(*arrays):
        differentiable = [*arrays[4:7], *_extras(arrays[4:])]
        results = tuple(jax.ShapeDtypeStruct(t.shape, t.dtype) for t in differentiable)
        return tuple(jax.ffi.ffi_call("flash3_backward", results)(*arrays, **attributes))

    def _extras(arrays):
        """sinks and bias, of those that are there."""
        given = iter(arrays[3:])
        others = [next(given) if there else None for there in present]
        return [tensor for tensor in others[4:] if tensor is not None]

    forward = _batchable(call_forward, mergeable=not any(present))
    backward = _batchable(call_backward, mergeable=not any(present))

    @jax.custom_vjp
    def run(*arrays):
        return forward(*arrays)

    def run_forward(*arrays):
        given = iter(arrays[3:])
        others = [next(given) if there else None for there in present]
        _check((*arrays[:3], *others), options, True)
        out, lse = forward(*arrays)
        return (out, lse), (arrays, out, lse)

    def run_backward(saved, gradients):
        arrays, out, lse = saved
        results = iter(backward(*gradients, out, lse, *arrays))
        return tuple(
            np.zeros(array.shape, jax.dtypes.float0) if jnp.issubdtype(array.dtype, jnp.integer) else next(results)
            for array in arrays
        )

    run.defvjp(run_forward, run_backward)
    return run


def _batchable(function, mergeable):
    """vmap's axis becomes part of the batch, where each element is treated alike; else one call an element."""
    batched = jax.custom_batching.custom_vmap(function)

    @batched.def_vmap
    def _(axis_size, in_batched, *arrays):
        if mergeable:
            spread = [
                a if there else jnp.broadcast_to(a, (axis_size, *a.shape)) for a, there in zip(arrays, in_batched)
            ]
            merged = batched(*(a.reshape(-1, *a.shape[2:]) for a in spread))
            results = tuple(r.reshape(axis_size, -1, *r.shape[1:]) for r in merged)
        else:

            def one(i):
                return function(*(a[i] if there else a for a, there in zip(arrays, in_batched)))

            results = jax.lax.map(one, jnp.arange(axis_size))
        return results, tuple(True for _ in results)

    return batched
