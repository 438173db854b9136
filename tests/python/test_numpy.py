"""NumPy arrays and other DLPack producers: every option reaches the engine; results are right and the caller's kind."""

import array_api_strict
import ml_dtypes
import numpy as np
import pytest

import flash3
import oracle

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

OPTIONS = {
    "plain": {},
    "scale": {"softmax_scale": 0.7},
    "causal": {"causal": True},
    "causal top-left": {"causal": True, "alignment": "top_left"},
    "window": {"window_left": 5, "window_right": 2},
    "left window": {"window_left": 3},
    "right window": {"window_right": 1},
    "causal window": {"causal": True, "window_left": 4},
    "softcap": {"softcap": 1.5},
    "lengths": {"seqused_q": np.array([17, 4], np.int32), "seqused_k": np.array([0, 9], np.int32)},
    "NumPy scalars": {"softmax_scale": np.float32(0.5), "causal": np.True_, "window_left": np.int64(3)},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16, np.float64], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(qkv, engine, dtype, options):
    tensors = qkv(dtype=dtype)
    engine = "reference" if dtype == np.float64 else engine
    out, lse = flash3.attention(*tensors, return_lse=True, engine=engine, **options)
    assert type(out) is np.ndarray and out.dtype == dtype
    assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    oracle.check(out, lse, *tensors, **options)
    alone = flash3.attention(*tensors, engine=engine, **options)
    np.testing.assert_array_equal(alone, out)


@pytest.mark.parametrize("name", [n for n in OPTIONS if n != "plain"])
def test_an_option_changes_the_result(qkv, engine, name):
    tensors = qkv()
    plain = flash3.attention(*tensors, engine=engine)
    assert not np.array_equal(flash3.attention(*tensors, engine=engine, **OPTIONS[name]), plain)


@pytest.mark.parametrize("shape", [(2, 4, 17, 23), (1, 1, 1, 23), (2, 1, 17, 23), (1, 4, 1, 23)], ids=str)
def test_bias_and_sinks(qkv, engine, random, shape):
    tensors = qkv()
    extra = {
        "bias": random.standard_normal(shape).astype(np.float32),
        "sinks": random.standard_normal(4).astype(np.float32),
    }
    for options in ({"bias": extra["bias"]}, {"sinks": extra["sinks"]}, extra):
        out, lse = flash3.attention(*tensors, return_lse=True, engine=engine, **options)
        oracle.check(out, lse, *tensors, **options)


def test_variable_length(random, engine):
    query = random.standard_normal((19, 4, 16)).astype(np.float32)
    key, value = (random.standard_normal((22, 2, 16)).astype(np.float32) for _ in range(2))
    options = {
        "cu_seqlens_q": np.array([0, 7, 7, 16], np.int32),  # an empty sequence; three rows that belong to none
        "cu_seqlens_k": np.array([0, 5, 12, 20], np.int32),
        "causal": True,
    }
    out, lse = flash3.attention(query, key, value, return_lse=True, engine=engine, **options)
    assert out.shape == (19, 4, 16) and lse.shape == (4, 19)
    oracle.check(out, lse, query, key, value, **options)
    assert (out[16:] == 0).all() and np.isneginf(lse[:, 16:]).all()
    bounded = flash3.attention(query, key, value, max_seqlen_q=9, max_seqlen_k=50, engine=engine, **options)
    np.testing.assert_array_equal(bounded, out)
    with pytest.raises(ValueError, match="max_seqlen_q: is 8, but the longest sequence of cu_seqlens_q has 9 rows"):
        flash3.attention(query, key, value, max_seqlen_q=8, engine=engine, **options)


def test_head_dims_differ(qkv, engine):
    tensors = qkv(head_dim=24, head_dim_v=40)
    out, lse = flash3.attention(*tensors, return_lse=True, engine=engine)
    assert out.shape == (2, 17, 4, 40)
    oracle.check(out, lse, *tensors)


def test_empty(qkv, engine):
    assert flash3.attention(*qkv(batch=0), engine=engine).shape == (0, 17, 4, 16)
    assert flash3.attention(*qkv(seqlen_q=0), engine=engine).shape == (2, 0, 4, 16)
    out, lse = flash3.attention(*qkv(seqlen_kv=0), return_lse=True, engine=engine)
    assert (out == 0).all() and np.isneginf(lse).all()


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_strides(qkv, engine, dtype):
    query, key, value = qkv(dtype=dtype)
    expected = flash3.attention(query, key, value, engine=engine)
    heads_first = [np.ascontiguousarray(t.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for t in (query, key, value)]
    reversed_rows = [np.ascontiguousarray(t[:, ::-1])[:, ::-1] for t in (query, key, value)]
    padded = [np.concatenate([t, t], axis=-1)[..., :16] for t in (query, key, value)]
    for tensors in (heads_first, reversed_rows, padded):
        np.testing.assert_array_equal(flash3.attention(*tensors, engine=engine), expected)
    one_key = np.broadcast_to(key[:, :1], key.shape)
    dense = flash3.attention(query, one_key.copy(), value, engine=engine)
    np.testing.assert_array_equal(flash3.attention(query, one_key, value, engine=engine), dense)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_out_is_written_in_place(qkv, engine, dtype):
    tensors = qkv(dtype=dtype)
    expected = flash3.attention(*tensors, engine=engine)
    whole = np.full((2, 4, 17, 16), 7, dtype)
    out = whole.transpose(0, 2, 1, 3)
    assert flash3.attention(*tensors, out=out, engine=engine) is out
    np.testing.assert_array_equal(out, expected)
    pair = flash3.attention(*tensors, out=out, return_lse=True, engine=engine)
    assert pair[0] is out and pair[1].shape == (2, 4, 17)


def test_unused_rows_of_out_are_left_alone(qkv, engine):
    tensors = qkv()
    out = np.full((2, 17, 4, 16), 7, np.float32)
    flash3.attention(*tensors, out=out, seqused_q=np.array([17, 4], np.int32), engine=engine)
    assert (out[1, 4:] == 7).all() and not (out[1, :4] == 7).any()


def test_read_only_inputs_are_read(qkv, engine):
    tensors = qkv()
    expected = flash3.attention(*tensors, engine=engine)
    for tensor in tensors:
        tensor.flags.writeable = False
    np.testing.assert_array_equal(flash3.attention(*tensors, engine=engine), expected)


class OnlyDLPack:
    """A tensor of which nothing is known but DLPack; `old` producers know version 0 alone."""

    def __init__(self, array, old):
        self.array, self.old = array, old

    def __dlpack__(self, **keywords):
        if self.old and keywords:
            raise TypeError("unexpected keyword")
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("old", [False, True])
def test_only_dlpack(qkv, engine, old):
    tensors = qkv()
    expected = flash3.attention(*tensors, engine=engine)
    out = flash3.attention(*(OnlyDLPack(t, old) for t in tensors), engine=engine)
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, expected)
    mixed = flash3.attention(tensors[0], OnlyDLPack(tensors[1], old), tensors[2], engine=engine)
    np.testing.assert_array_equal(mixed, expected)


def test_array_api_namespace(qkv, engine):
    tensors = qkv()
    expected, expected_lse = flash3.attention(*tensors, return_lse=True, engine=engine)
    strict = [array_api_strict.asarray(t) for t in tensors]
    out, lse = flash3.attention(*strict, return_lse=True, engine=engine)
    assert type(out) is type(lse) is type(strict[0])
    np.testing.assert_array_equal(np.from_dlpack(out), expected)
    np.testing.assert_array_equal(np.from_dlpack(lse), expected_lse)


def test_memoryview(qkv, engine):
    tensors = qkv()
    out = flash3.attention(*(memoryview(t) for t in tensors), engine=engine)
    np.testing.assert_array_equal(out, flash3.attention(*tensors, engine=engine))


def test_plan(qkv):
    tensors = qkv()
    plan = flash3.plan(*tensors, causal=True, engine="reference")
    assert plan.engine == "reference" and "causal" in plan.problem and plan.kernel and plan.num_threads >= 1
    assert plan.kernel in str(plan) and "reference" in repr(plan)
    assert plan.reasons == ["asked for by name"] and plan.refused == []
    assert 0 < plan.flops < flash3.plan(*tensors, engine="reference").flops
    backward = flash3.plan(*tensors, causal=True, engine="reference", backward=True, sinks=np.zeros(4, np.float32))
    assert backward.flops == pytest.approx(2.5 * plan.flops)


def test_automatic_plan_says_what_was_passed_over(qkv, engine):
    if engine == "reference":
        pytest.skip("no engine but the reference")
    plan = flash3.plan(*qkv())
    assert plan.engine == engine
    assert all(name != engine and reason for name, reason in plan.refused)
