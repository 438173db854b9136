"""Bad input is an error of Python's own kind: it names the argument, what was given and what is accepted; no crash."""

import ctypes

import ml_dtypes
import numpy as np
import pytest

import flash3

BAD_OPTIONS = [
    ({"softmax_scale": "1"}, TypeError, r"softmax_scale: is str, accepted is a number, or None"),
    ({"softmax_scale": float("nan")}, ValueError, r"softmax_scale: is nan, accepted is any finite number"),
    ({"causal": "yes"}, TypeError, r"causal: is str, accepted is True or False"),
    ({"causal": 1}, TypeError, r"causal: is int, accepted is True or False"),
    ({"causal": np.zeros(2, bool)}, TypeError, r"causal: is ndarray, accepted is True or False"),
    ({"alignment": "top"}, ValueError, r'alignment: is "top", accepted is "bottom_right" or "top_left"'),
    ({"alignment": None}, TypeError, r"alignment: is NoneType, accepted is"),
    ({"window_left": -1}, ValueError, r"window_left: is -1, accepted is 0 or more"),
    ({"window_left": 1.5}, TypeError, r"window_left: is float, accepted is an integer"),
    ({"window_right": 1 << 70}, ValueError, r"window_right: is beyond 64 bits, accepted is an integer"),
    ({"softcap": -1}, ValueError, r"softcap: is -1, accepted is 0"),
    ({"softcap": None}, TypeError, r"softcap: is NoneType, accepted is a number"),
    ({"engine": "gpu"}, ValueError, r'engine: is "gpu", accepted is "automatic", "cuda"'),
    ({"engine": 1}, TypeError, r"engine: is int, accepted is"),
    ({"num_threads": -1}, ValueError, r"num_threads: is -1, accepted is"),
    ({"num_threads": 1.0}, TypeError, r"num_threads: is float, accepted is"),
    ({"sinks": np.zeros(3, np.float32)}, ValueError, r"sinks: shape is \(3\), accepted is \(heads_q\) = \(4\)"),
    ({"sinks": np.zeros(4)}, ValueError, r"sinks: dtype is float64, accepted is float32"),
    ({"bias": np.zeros((2, 4, 17), np.float32)}, ValueError, r"bias: shape is \(2, 4, 17\), accepted is"),
    ({"seqused_k": np.zeros(2, np.int64)}, ValueError, r"seqused_k: dtype is int64, accepted are .*int32"),
    ({"seqused_k": [1, 2]}, TypeError, r"seqused_k: is list, accepted is"),
    ({"seqused_k": np.array([24, 0], np.int32)}, ValueError, r"seqused_k: entry 0 is 24, accepted is 0 to"),
    ({"max_seqlen_q": 1.5}, TypeError, r"max_seqlen_q: is float, accepted is an integer of 0 or more, or None"),
    ({"max_seqlen_k": -1}, ValueError, r"max_seqlen_k: is -1, accepted is 0 or more"),
    ({"cu_seqlens_q": np.array([0, 1], np.int32)}, ValueError, r"query: shape is .*, accepted with cu_seqlens_q is"),
]


@pytest.mark.parametrize(
    "options, kind, text", BAD_OPTIONS, ids=[f"{n}-{next(iter(o))}" for n, (o, _, _) in enumerate(BAD_OPTIONS)]
)
def test_options(qkv, engine, options, kind, text):
    options = {"engine": engine} | options
    with pytest.raises(kind, match=text):
        flash3.attention(*qkv(), **options)
    with pytest.raises(kind, match=text):
        flash3.plan(*qkv(), **options)


@pytest.mark.parametrize("position, name", list(enumerate(["query", "key", "value"])))
@pytest.mark.parametrize(
    "make, kind, text",
    [
        (lambda t: t.tolist(), TypeError, "is list, accepted is"),
        (lambda t: None, TypeError, "is NoneType, accepted is"),
        (lambda t: 3.0, TypeError, "is float, accepted is"),
        (lambda t: t.astype(object), ValueError, "dtype is object, accepted are float32, float16, bfloat16"),
        (lambda t: t.astype(np.int64), ValueError, "dtype is int64, accepted are"),
        (lambda t: t.astype(np.complex64), ValueError, "dtype is complex64, accepted are"),
        (lambda t: t.astype(">f4"), ValueError, "dtype is >f4, accepted are"),
        (lambda t: t.astype("U3"), ValueError, "dtype is <U3, accepted are"),
        (lambda t: t.astype("M8[s]"), ValueError, r"dtype is datetime64\[s\], accepted are"),
        (lambda t: t.astype(ml_dtypes.float8_e5m2), ValueError, "dtype is float8_e5m2, accepted are"),
        (lambda t: np.zeros(3, [("a", "f4"), ("b", "f4")])["a"], ValueError, "stride|rank|shape"),
        (lambda t: np.zeros((1,) * 7, np.float32), ValueError, "rank is 7, accepted are 0 to 6"),
        (lambda t: np.float32(1), (TypeError, ValueError), "is|shape is"),
        (lambda t: t[0, 0, 0], ValueError, "shape is"),
        (lambda t: t[..., ::2], ValueError, "last dimension has stride 2, accepted is 1|head_dim is 8, accepted is"),
        (lambda t: np.ma.masked_array(t, t > 0), TypeError, "is a MaskedArray, whose mask would be ignored"),
    ],
)  # fmt: skip
def test_tensors(qkv, engine, position, name, make, kind, text):
    tensors = list(qkv())
    tensors[position] = make(tensors[position])
    with pytest.raises(kind, match=f"(?:{text})") as caught:
        flash3.attention(*tensors, engine=engine)
    assert "query" in str(caught.value) or name in str(caught.value)


def test_stride_that_is_no_multiple_of_the_element(qkv, engine):
    packed = np.zeros((2, 17, 4), np.dtype([("pad", "u1"), ("values", "f4", 16)]))
    _, key, value = qkv()
    with pytest.raises(ValueError, match="query: stride of dimension 2 is 65 bytes, accepted is a multiple of"):
        flash3.attention(packed["values"], key, value, engine=engine)


def test_out(qkv, engine):
    tensors = qkv()
    out = np.zeros((2, 17, 4, 16), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: is read-only, accepted is memory that may be written"):
        flash3.attention(*tensors, out=out, engine=engine)
    with pytest.raises(ValueError, match=r"out: shape is \(2, 17, 4, 8\), accepted is"):
        flash3.attention(*tensors, out=np.zeros((2, 17, 4, 8), np.float32), engine=engine)
    with pytest.raises(ValueError, match="out: dtype is float16, accepted is float32"):
        flash3.attention(*tensors, out=np.zeros((2, 17, 4, 16), np.float16), engine=engine)
    with pytest.raises(ValueError, match="out: this output overlaps query in memory"):
        flash3.attention(*tensors, out=tensors[0], engine=engine)
    with pytest.raises(ValueError, match="out: elements of this output share memory"):
        shared = np.lib.stride_tricks.as_strided(np.zeros(16, np.float32), (2, 17, 4, 16), (0, 0, 0, 4))
        flash3.attention(*tensors, out=shared, engine=engine)
    with pytest.raises(TypeError, match="out: is list, accepted is"):
        flash3.attention(*tensors, out=[], engine=engine)


def test_freed_memoryview(qkv, engine):
    query, key, value = qkv()
    view = memoryview(query)
    view.release()
    with pytest.raises(ValueError, match="released|query"):
        flash3.attention(view, key, value, engine=engine)
    with pytest.raises(ValueError, match="key: the buffer cannot be read"):
        flash3.attention(query, view, value, engine=engine)


def test_engine_that_is_not_there(qkv):
    with pytest.raises(NotImplementedError, match="engine emulator cannot run this problem: "):
        flash3.attention(*qkv(), engine="emulator")


class OnDevice:
    """A tensor that says it lives on a device; nothing behind it may be touched."""

    shape = (2, 17, 4, 16)

    def __init__(self, device_type, deleted):
        self.device_type, self.deleted = device_type, deleted

    def __dlpack_device__(self):
        return (self.device_type, 0)

    def __dlpack__(self, **_):
        class Managed(ctypes.Structure):
            _fields_ = [
                ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
                ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
            ]  # fmt: skip

        self.extents = (ctypes.c_int64 * 4)(*self.shape)
        delete_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self.delete = delete_type(lambda _: self.deleted.append(True))
        address = ctypes.cast(self.delete, ctypes.c_void_p).value
        self.managed = Managed(
            4096, self.device_type, 0, 4, 2, 32, 1, ctypes.addressof(self.extents), None, 0, None, address
        )
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.managed), b"dltensor", None)


@pytest.mark.parametrize(
    "device_type, kind, text",
    [
        (8, ValueError, "key: DLPack device type 8; accepted are CPU and CUDA memory"),
        (2, ValueError, "key: is on cuda:0, accepted is cpu, where query is"),
    ],
)
def test_devices(qkv, engine, device_type, kind, text):
    query, _, value = qkv(seqlen_kv=17, heads_kv=4)
    deleted = []
    with pytest.raises(kind, match=text):
        flash3.attention(query, OnDevice(device_type, deleted), value, engine=engine)
    assert deleted == [True]  # and the producer got its tensor back


def test_a_producer_that_fails(qkv, engine):
    class Broken:
        shape = (2, 17, 4, 16)

        def __dlpack__(self, **_):
            raise BufferError("the buffer is gone")

    class Liar(Broken):
        def __dlpack__(self, **_):
            return "no capsule"

    query, _, value = qkv()
    with pytest.raises(ValueError, match="key: cannot be read through DLPack: the buffer is gone"):
        flash3.attention(query, Broken(), value, engine=engine)
    with pytest.raises(ValueError, match="key: __dlpack__ of Liar returned no DLPack capsule"):
        flash3.attention(query, Liar(), value, engine=engine)


def test_nothing_is_written_when_refused(qkv, engine):
    out = np.full((2, 17, 4, 16), 7, np.float32)
    with pytest.raises(ValueError):
        flash3.attention(*qkv(), out=out, softcap=-1, engine=engine)
    assert (out == 7).all()
