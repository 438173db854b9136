"""JAX arrays under jit, grad and vmap: the same bits as NumPy's, gradients of the definition, errors while tracing."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax.test_util import check_grads

import flash3
import flash3.jax


@pytest.fixture
def arrays(random):
    def make(batch=2, seqlen=9, heads=(4, 2, 2), head_dim=8, dtype=jnp.float32):
        return [jnp.asarray(random.standard_normal((batch, seqlen, h, head_dim)), dtype) for h in heads]

    return make


def naive(query, key, value, sinks=None, bias=None):
    """The definition with a causal mask, for JAX to differentiate. Returns out and lse."""
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(t, group, 2) for t in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest") / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    logits = scores
    if sinks is not None:
        logits = jnp.concatenate([scores, jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))], -1)
    lse = jax.nn.logsumexp(logits, -1)
    return jnp.einsum("bhqk,bkhd->bqhd", jnp.exp(scores - lse[..., None]), value, precision="highest"), lse


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16], ids=lambda d: d.__name__)
def test_same_bits_as_numpy(arrays, engine, dtype):
    qkv = arrays(dtype=dtype)
    options = {"causal": True, "window_left": 5, "softcap": 2.0, "return_lse": True, "engine": engine}
    expected = flash3.attention(*(np.asarray(t) for t in qkv), **options)
    for f in (flash3.attention, flash3.jax.attention):
        eager = f(*qkv, **options)
        compiled = jax.jit(lambda *a, f=f: f(*a, **options))(*qkv)
        for results in (eager, compiled):
            for result, exact in zip(results, expected):
                assert isinstance(result, jax.Array) and result.dtype == exact.dtype
                np.testing.assert_array_equal(np.asarray(result), exact)


def test_variable_length(random, engine):
    query, key, value = (random.standard_normal((12, h, 8)).astype(np.float32) for h in (4, 2, 2))
    lengths = np.array([0, 5, 5, 11], np.int32)
    options = {"causal": True, "return_lse": True, "engine": engine}

    def f(query, key, value, lengths):
        return flash3.jax.attention(query, key, value, cu_seqlens_q=lengths, cu_seqlens_k=lengths, **options)

    expected = flash3.attention(query, key, value, cu_seqlens_q=lengths, cu_seqlens_k=lengths, **options)
    for results in (f(query, key, value, jnp.asarray(lengths)), jax.jit(f)(query, key, value, lengths)):
        for result, exact in zip(results, expected):
            np.testing.assert_array_equal(result, exact)
    gradient = jax.grad(lambda q: f(q, key, value, lengths)[0].sum())(jnp.asarray(query))
    assert (gradient[11:] == 0).all()
    broken = jnp.asarray([0, 5, 3, 11], jnp.int32)
    with pytest.raises(ValueError, match="cu_seqlens_q: falls from 5 to 3"):
        f(query, key, value, broken)
    with pytest.raises(Exception, match="cu_seqlens_q: falls from 5 to 3"):
        jax.block_until_ready(jax.jit(f)(query, key, value, broken))


def test_gradients(arrays, engine, random):
    qkv = arrays()
    sinks = jnp.asarray(random.standard_normal(4), jnp.float32)
    bias = jnp.asarray(random.standard_normal((1, 4, 9, 9)), jnp.float32)

    def loss(attention):
        def f(query, key, value, sinks, bias):
            out, lse = attention(query, key, value, sinks, bias)
            return jnp.square(out).sum() + jnp.sin(lse).sum()

        return f

    def ours(query, key, value, sinks, bias):
        options = {"causal": True, "return_lse": True, "engine": engine}
        return flash3.jax.attention(query, key, value, sinks=sinks, bias=bias, **options)

    arguments = (*qkv, sinks, bias)
    expected = jax.grad(loss(naive), range(5))(*arguments)
    for gradients in (jax.grad(loss(ours), range(5))(*arguments), jax.jit(jax.grad(loss(ours), range(5)))(*arguments)):
        for gradient, exact in zip(gradients, expected):
            np.testing.assert_allclose(gradient, exact, rtol=2e-4, atol=2e-5)


def test_gradients_in_float64(arrays):
    """Against finite differences."""
    with jax.enable_x64(True):
        qkv = arrays(seqlen=3, batch=1, head_dim=2, dtype=jnp.float64)

        def f(query, key, value):
            return flash3.jax.attention(query, key, value, causal=True, return_lse=True, engine="reference")

        check_grads(f, qkv, order=1, modes=["rev"])


@pytest.mark.parametrize("in_axes", [(0, 0, 0), (0, None, None), (1, 0, None)])
def test_vmap(arrays, engine, in_axes):
    many = [arrays() for _ in range(3)]
    qkv = [many[0][i] if axis is None else jnp.stack([m[i] for m in many], axis) for i, axis in enumerate(in_axes)]
    each = [[many[0][i] if axis is None else m[i] for i, axis in enumerate(in_axes)] for m in many]

    def f(query, key, value):
        return flash3.jax.attention(query, key, value, causal=True, engine=engine)

    expected = jnp.stack([f(*one) for one in each])
    np.testing.assert_array_equal(jax.vmap(f, in_axes)(*qkv), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(f, in_axes))(*qkv), expected)

    def gradient(*a):
        return jax.grad(lambda q, k, v: jnp.square(f(q, k, v)).sum())(*a)

    expected = jnp.stack([gradient(*one) for one in each])
    np.testing.assert_allclose(jax.vmap(gradient, in_axes)(*qkv), expected, rtol=1e-5, atol=1e-6)


def test_vmap_over_lengths_and_sinks(arrays, engine, random):
    qkv = arrays()
    used = jnp.asarray([[9, 4], [1, 0], [7, 9]], jnp.int32)
    sinks = jnp.asarray(random.standard_normal((3, 4)), jnp.float32)

    def f(used, sinks):
        return flash3.jax.attention(*qkv, seqused_k=used, sinks=sinks, engine=engine)

    expected = jnp.stack([f(u, s) for u, s in zip(used, sinks)])
    np.testing.assert_array_equal(jax.vmap(f)(used, sinks), expected)


def test_errors(arrays, engine):
    query, key, value = arrays()
    for transform in (lambda f: f, jax.jit, jax.grad):

        def run(transform=transform, key=key, **options):
            options = {"engine": engine} | options
            return transform(lambda q: flash3.jax.attention(q, key, value, **options).sum())(query)

        with pytest.raises(TypeError, match="causal: is str, accepted is True or False"):
            run(causal="yes")
        with pytest.raises(ValueError, match="softcap: is -1, accepted is 0"):
            run(softcap=-1)
        with pytest.raises(ValueError, match="key: head_dim is 4, accepted is query's 8"):
            run(key=key[..., :4])
        with pytest.raises(NotImplementedError, match="engine emulator cannot run this problem"):
            run(engine="emulator")
    with pytest.raises(ValueError, match="out: is given, but JAX arrays cannot be written"):
        flash3.jax.attention(query, key, value, out=query, engine=engine)
    with pytest.raises(TypeError, match="softmax_scale: is .*Tracer, accepted is a number"):
        jax.jit(lambda s: flash3.jax.attention(query, key, value, softmax_scale=s, engine=engine))(0.5)
    deleted = jnp.array(key)
    deleted.delete()
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        flash3.attention(query, deleted, value, engine=engine)


def test_torch_free(engine):
    """JAX alone is enough."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers")))
import jax, flash3
t = jax.numpy.ones((1, 4, 2, 8))
assert (jax.grad(lambda t: flash3.attention(t, t, t, causal=True, engine={engine!r}).sum())(t) != 0).any()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Field by field: our name of a structure, XLA's, and pairs of their fields.
LAYOUTS = {
    ("Extension", "XLA_FFI_Extension_Base"): "struct_size type next",
    ("Version", "XLA_FFI_Api_Version"): "struct_size extensions:extension_start major_version minor_version",
    ("ErrorCreateArgs", "XLA_FFI_Error_Create_Args"): "struct_size extensions:extension_start message code:errc",
    ("Api", "XLA_FFI_Api"): "struct_size extensions:extension_start version:api_version internal:internal_api "
    "create_error:XLA_FFI_Error_Create get_stream:XLA_FFI_Stream_Get",
    ("StreamGetArgs", "XLA_FFI_Stream_Get_Args"): "struct_size extensions:extension_start context:ctx stream",
    ("Metadata", "XLA_FFI_Metadata"): "struct_size version:api_version traits",
    ("MetadataExtension", "XLA_FFI_Metadata_Extension"): "base:extension_base metadata",
    ("Buffer", "XLA_FFI_Buffer"): "struct_size extensions:extension_start dtype data rank dims",
    ("Buffers", "XLA_FFI_Args"): "struct_size extensions:extension_start size kinds:types buffers:args",
    ("Buffers", "XLA_FFI_Rets"): "struct_size extensions:extension_start size kinds:types buffers:rets",
    ("Span", "XLA_FFI_ByteSpan"): "data:ptr size:len",
    ("Scalar", "XLA_FFI_Scalar"): "dtype value",
    ("Attributes", "XLA_FFI_Attrs"): "struct_size extensions:extension_start size kinds:types names values:attrs",
    ("CallFrame", "XLA_FFI_CallFrame"): "struct_size extensions:extension_start api context:ctx stage arguments:args "
    "results:rets attributes:attrs",
}
CONSTANTS = {
    "metadata_extension": "XLA_FFI_Extension_Metadata",
    "known_major_version": "XLA_FFI_API_MAJOR",
    "buffer_kind": "XLA_FFI_ArgType_BUFFER",
    "scalar_kind": "XLA_FFI_AttrType_SCALAR",
    "execute_stage": "XLA_FFI_ExecutionStage_EXECUTE",
    "(int)ErrorCode::invalid_argument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "(int)ErrorCode::resource_exhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "(int)ErrorCode::unimplemented": "XLA_FFI_Error_Code_UNIMPLEMENTED",
    "(int)ErrorCode::internal": "XLA_FFI_Error_Code_INTERNAL",
    "(int)Type::s32": "XLA_FFI_DataType_S32",
    "(int)Type::s64": "XLA_FFI_DataType_S64",
    "(int)Type::f16": "XLA_FFI_DataType_F16",
    "(int)Type::f32": "XLA_FFI_DataType_F32",
    "(int)Type::f64": "XLA_FFI_DataType_F64",
    "(int)Type::bf16": "XLA_FFI_DataType_BF16",
    "(int)Type::f8e4m3fn": "XLA_FFI_DataType_F8E4M3FN",
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_xla_layouts(tmp_path):
    """Our declarations of XLA's interface agree with the header of the installed jaxlib."""
    ours = Path(__file__).parents[2] / "python" / "src" / "xla_ffi.h"
    lines = []
    for (mine, theirs), fields in LAYOUTS.items():
        for field in fields.split():
            a, _, b = field.partition(":")
            lines.append(f"static_assert(offsetof({mine}, {a}) == offsetof({theirs}, {b or a}));")
            lines.append(f"static_assert(sizeof({mine}::{a}) == sizeof({theirs}::{b or a}));")
    lines += [f"static_assert({a} == {b});" for a, b in CONSTANTS.items()]
    source = tmp_path / "layouts.cpp"
    source.write_text(
        f'#include "{ours}"\n#include "xla/ffi/api/c_api.h"\nusing namespace flash3::python::xla;\n'
        + "\n".join(lines)
        + "\n"
    )
    command = ["g++", "-std=c++20", "-fsyntax-only", "-I", jax.ffi.include_dir(), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, textwrap.shorten(result.stderr, 2000)
