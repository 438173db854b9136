"""The door for NumPy arrays."""

from __future__ import annotations

import numpy as np

from flash3 import _flash3
from flash3._outputs import has_unowned_rows, lse_shape, out_shape, refuse_gradient

_array = np.ndarray
_float32 = np.dtype(np.float32)
_float64 = np.dtype(np.float64)


def attend(inputs, options, out, return_lse):
    query, _, value = inputs[:3]
    for tensor in inputs:
        if tensor is not None and type(tensor) is not _array:
            _check_other_kind(inputs)
            break
    partial = has_unowned_rows(inputs)
    if out is None:
        out = (np.zeros if partial else np.empty)(out_shape(query, value), query.dtype)
    if not return_lse:
        _flash3.forward(inputs, out, None, options)
        return out
    lse = np.empty(lse_shape(query.shape), _float64 if query.dtype == _float64 else _float32)
    if partial:
        lse.fill(-np.inf)
    _flash3.forward(inputs, out, lse, options)
    return out, lse


def _check_other_kind(inputs):
    refuse_gradient(inputs)
    for name, tensor in zip(("query", "key", "value"), inputs):
        if isinstance(tensor, np.ma.MaskedArray):
            raise TypeError(f"{name}: is a MaskedArray, whose mask would be ignored; accepted is a plain array")
