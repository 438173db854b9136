"""The door for JAX: attention under jit, grad and vmap, through XLA's foreign-function interface on CPU and CUDA."""

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
jax.ffi.register_ffi_target("flash3_forward", _flash3.jax_forward_gpu, platform="CUDA")
jax.ffi.register_ffi_target("flash3_backward", _flash3.jax_backward_gpu, platform="CUDA")

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
    """Everything that shapes, types and options say is checked while tracing, in flash3's words, and on a GPU whether
    its engine can do it."""
    gpu = _gpu(inputs[0]) if options[-2] in ("automatic", "cuda") else None
    _flash3.plan(tuple(_stand_in(tensor, index) for index, tensor in enumerate(inputs)), options, backward, gpu)


def _gpu(query):
    """The CUDA GPU that query is on, or that a traced program would run on as things are; None for the CPU."""
    if isinstance(query, jax.Array) and not isinstance(query, jax.core.Tracer):
        device = next(iter(query.devices()))
    else:
        device = jax.config.jax_default_device or jax.devices()[0]
    if isinstance(device, str):
        device = jax.devices(device)[0]
    return device.local_hardware_id if device.platform == "gpu" else None


def _stand_in(tensor, index):
    """An array of a tracer's shape and type that takes no memory. Lengths are 0: sound, whatever the true ones are."""
    if isinstance(tensor, jax.core.Tracer):
        last = np.zeros(tensor.shape[-1:], tensor.dtype)
        return last if 3 <= index <= 6 else np.broadcast_to(last, tensor.shape)
    if not isinstance(tensor, jax.Array):
        return tensor
    if tensor.is_deleted() or all(device.platform == "cpu" for device in tensor.devices()):
        return np.asarray(tensor)
    return np.broadcast_to(np.zeros(tensor.shape[-1:], tensor.dtype), tensor.shape)


def _static(query, options):
    """The options as attributes of the foreign call."""
    softmax_scale, causal, alignment, window_left, window_right, softcap, *lengths, engine, num_threads = options
    if softmax_scale is None:
        softmax_scale = 1.0 / float(query.shape[-1]) ** 0.5
    return (
        ("softmax_scale", np.float64(softmax_scale)),
        ("causal", np.int64(bool(causal))),
        ("top_left", np.int64(alignment == "top_left")),
        ("window_left", np.int64(-1 if window_left is None else window_left)),
        ("window_right", np.int64(-1 if window_right is None else window_right)),
        ("softcap", np.float64(softcap)),
        *((name, np.int64(-1 if n is None else n)) for name, n in zip(("max_seqlen_q", "max_seqlen_k"), lengths)),
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
        partial = present[0] or present[2]  # rows may belong to no sequence, which no engine writes
        return _call("flash3_forward", arrays, results, (0, -jnp.inf) if partial else (), attributes)

    def call_backward(*arrays):
        differentiable = [*arrays[4:7], *_extras(arrays[4:])]
        results = tuple(jax.ShapeDtypeStruct(t.shape, t.dtype) for t in differentiable)
        return _call("flash3_backward", arrays, results, (0, 0, 0) if any(present[:4]) else (), attributes)

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


def _call(target, arrays, results, fills, attributes):
    """The foreign call; its first results are written over arrays of these values."""
    filled = [jnp.full(r.shape, fill, r.dtype) for r, fill in zip(results, fills)]
    aliases = {len(arrays) + i: i for i in range(len(filled))}
    call = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)
    return tuple(call(*arrays, *filled, **attributes))


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
