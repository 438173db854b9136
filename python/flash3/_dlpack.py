"""The door for tensors of any other kind: DLPack or the buffer protocol."""

from __future__ import annotations

import contextlib

from flash3 import _flash3
from flash3._outputs import has_unowned_rows, lse_shape, refuse_gradient


def attend(inputs, options, out, return_lse):
    """Results come from the namespace of the array API standard that query names, or else are NumPy arrays."""
    query, _, value = inputs[:3]
    refuse_gradient(inputs)
    shape, dtype_name = _flash3.shape_and_dtype(query, "query")
    value_shape, _ = _flash3.shape_and_dtype(value, "value")
    namespace, dtype, place, current = _namespace(query, dtype_name)
    partial = has_unowned_rows(inputs)
    lse = None
    with current:
        if out is None:
            make = namespace.zeros if partial else namespace.empty
            out = make((*shape[:-1], *value_shape[-1:]), dtype=dtype, **place)
        if return_lse:
            lse_dtype = namespace.float64 if dtype_name == "float64" else namespace.float32
            lse = namespace.full(lse_shape(shape), float("-inf"), dtype=lse_dtype, **place)
    _flash3.forward(inputs, out, lse, options)
    return (out, lse) if return_lse else out


def _namespace(query, dtype_name):
    """The array namespace, dtype and device keyword of results, and what makes that device current."""
    if type(query).__module__.partition(".")[0] == "cupy":  # it has no device keyword
        import cupy

        return cupy, query.dtype, {}, query.device
    if hasattr(query, "__array_namespace__"):
        return query.__array_namespace__(), query.dtype, {"device": query.device}, contextlib.nullcontext()
    import numpy

    extension = {"bfloat16": "bfloat16", "float8_e4m3": "float8_e4m3fn"}.get(dtype_name)
    if extension is None:
        return numpy, numpy.dtype(dtype_name), {}, contextlib.nullcontext()
    import ml_dtypes

    return numpy, numpy.dtype(getattr(ml_dtypes, extension)), {}, contextlib.nullcontext()
