"""Which CUDA stream a call's work is queued on: the one that the tensor's framework has current. No GPU is touched."""

import ctypes
import types

import numpy as np
import pytest

from flash3 import _flash3

CUDA = 2
CPU = 1
SHAPE = (ctypes.c_int64 * 4)(1, 2, 3, 8)


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class ManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class ExchangeApi(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p), ("export", ctypes.c_void_p), ("to_object", ctypes.c_void_p),
        ("borrow", ctypes.c_void_p), ("current_stream", ctypes.c_void_p),
    ]  # fmt: skip


def tensor_on(device_type, device_id):
    return Tensor(1 << 20, device_type, device_id, 4, 2, 16, 1, ctypes.addressof(SHAPE), None, 0)


def capsule(address, name):
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(address, name, None)


def class_with_exchange_api(device_type, stream):
    """A tensor class that tells C its framework's stream, and what it was asked."""
    asked = []

    @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Tensor))
    def borrow(_, out):
        out[0] = tensor_on(device_type, 3)
        return 0

    @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
    def current_stream(kind, index, out):
        asked.append((kind, index))
        out[0] = stream
        return 0

    addresses = (ctypes.cast(f, ctypes.c_void_p) for f in (borrow, current_stream))
    api = ExchangeApi(1, 3, None, None, None, None, *addresses)
    members = {
        "__dlpack_c_exchange_api__": capsule(ctypes.addressof(api), b"dlpack_exchange_api"),
        "keep": (api, borrow, current_stream),
    }
    return type("Fast", (), members), asked


def class_with_dlpack(device_type, module):
    """A tensor class with DLPack's Python protocol alone, and the keywords that it was asked with."""
    asked = []

    class Slow:
        def __dlpack_device__(self):
            return (device_type, 3)

        def __dlpack__(self, **keywords):
            asked.append(keywords)
            self.managed = ManagedTensor(tensor_on(device_type, 3), None, None)
            return capsule(ctypes.addressof(self.managed), b"dltensor")

    Slow.__module__ = module
    return Slow, asked


def test_exchange_api():
    kind, asked = class_with_exchange_api(CUDA, 0x1230)
    assert _flash3.current_stream(kind()) == 0x1230 and asked == [(CUDA, 3)]
    kind, asked = class_with_exchange_api(CUDA, None)
    assert _flash3.current_stream(kind()) == 0 and asked == [(CUDA, 3)]
    kind, asked = class_with_exchange_api(CPU, 0x1230)
    assert _flash3.current_stream(kind()) == 0 and asked == []


@pytest.mark.parametrize("package", ["torch", "cupy"])
def test_frameworks_without_the_exchange_api(package, monkeypatch):
    def current_stream(device_index):
        assert device_index == 3
        return types.SimpleNamespace(cuda_stream=0x4560, ptr=0x4560)

    cuda = types.SimpleNamespace(current_stream=current_stream, get_current_stream=current_stream)
    monkeypatch.setitem(__import__("sys").modules, package, types.SimpleNamespace(cuda=cuda))
    kind, asked = class_with_dlpack(CUDA, f"{package}.something")
    assert _flash3.current_stream(kind()) == 0x4560
    assert asked == [{"max_version": (1, 1), "stream": 0x4560}]


def test_unknown_frameworks():
    """The legacy default stream, which the producer makes wait for its own."""
    kind, asked = class_with_dlpack(CUDA, "somewhere")
    assert _flash3.current_stream(kind()) == 0 and asked == [{"max_version": (1, 1), "stream": 1}]
    kind, asked = class_with_dlpack(CPU, "somewhere")
    assert _flash3.current_stream(kind()) == 0 and asked == [{"max_version": (1, 1)}]
    assert _flash3.current_stream(np.zeros(3, np.float32)) == 0


def test_other_tensors_wait_for_the_first_ones_stream():
    """The stream is asked of query; the producers of others are told it."""
    fast, asked = class_with_exchange_api(CUDA, 0x1230)
    other, asked_other = class_with_exchange_api(CUDA, 0x7770)
    slow, keywords = class_with_dlpack(CUDA, "somewhere")
    options = (None, False, "bottom_right", None, None, 0.0, None, None, "cuda", 0)
    with pytest.raises((NotImplementedError, ValueError)):
        _flash3.plan((fast(), slow(), other(), *[None] * 6), options, False)
    assert asked == [(CUDA, 3)] and asked_other == []
    assert keywords == [{"max_version": (1, 1), "stream": 0x1230}]
