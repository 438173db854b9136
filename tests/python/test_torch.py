"""PyTorch tensors: eager, under autograd, compiled, traced, transformed; the same results and bits each way."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import flash3
import flash3.torch


@pytest.fixture
def tensors(random):
    def make(batch=2, seqlen=6, heads=(4, 2, 2), head_dim=8, dtype=torch.float32, requires_grad=False):
        def tensor(h):
            return torch.from_numpy(random.standard_normal((batch, seqlen, h, head_dim))).to(dtype)

        return [tensor(h).requires_grad_(requires_grad) for h in heads]

    return make


def naive(query, key, value, *, causal=False, softcap=0.0, sinks=None, bias=None):
    """The definition, in torch's own operations, for autograd to differentiate. Returns out and lse."""
    group = query.shape[2] // key.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (query, key.repeat_interleave(group, 2), value.repeat_interleave(group, 2)))
    scores = q @ k.transpose(-1, -2) / query.shape[-1] ** 0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    logits = scores
    if sinks is not None:
        logits = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    lse = torch.logsumexp(logits, -1)
    return (torch.exp(scores - lse.unsqueeze(-1)) @ v).transpose(1, 2), lse


def operator_arguments(query, key, value, engine, backward_follows):
    options = (None, True, "bottom_right", 3, None, 0.0, None, None, engine, 0)
    return (query, key, value, *[None] * 6, *options, backward_follows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_forward(tensors, engine, dtype):
    qkv = tensors(dtype=dtype)
    out, lse = flash3.attention(*qkv, causal=True, return_lse=True, engine=engine)
    assert type(out) is torch.Tensor and out.dtype is dtype and lse.dtype is torch.float32 and not out.requires_grad
    wide = [t.to(torch.float64) for t in qkv]
    expected, expected_lse = naive(*wide, causal=True)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=8 * eps, atol=8 * eps)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
    assert torch.equal(flash3.attention(*qkv, causal=True, engine=engine), out)


def test_same_bits_as_numpy(tensors, engine):
    qkv = tensors()
    expected = flash3.attention(*(t.numpy() for t in qkv), softcap=2.0, engine=engine)
    np.testing.assert_array_equal(flash3.attention(*qkv, softcap=2.0, engine=engine).numpy(), expected)
    mixed = flash3.attention(qkv[0], qkv[1].numpy(), qkv[2], softcap=2.0, engine=engine)
    np.testing.assert_array_equal(mixed.numpy(), expected)


def test_strides_and_out(tensors, engine):
    qkv = tensors()
    expected = flash3.attention(*qkv, engine=engine)
    heads_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in qkv]
    assert torch.equal(flash3.attention(*heads_first, engine=engine), expected)
    out = torch.full((2, 4, 6, 8), 7.0).transpose(1, 2)
    assert flash3.attention(*qkv, out=out, engine=engine) is out
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="query: the last dimension has stride"):
        flash3.attention(*(t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in qkv), engine=engine)


def test_gradcheck(tensors):
    """First derivatives in float64, of out and of lse, in every differentiable input."""
    qkv = tensors(dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(1, 4, 6, 6, dtype=torch.float64, requires_grad=True)

    def f(query, key, value, sinks, bias):
        options = {"causal": True, "softcap": 2.0, "return_lse": True, "engine": "reference"}
        return flash3.attention(query, key, value, sinks=sinks, bias=bias, **options)

    assert torch.autograd.gradcheck(f, (*qkv, sinks, bias))


@pytest.mark.parametrize("with_lse", [False, True])
def test_gradients(tensors, engine, with_lse):
    qkv = tensors(seqlen=19, head_dim=16, requires_grad=True)
    sinks = torch.randn(4, requires_grad=True)
    wide = [t.detach().double().requires_grad_() for t in (*qkv, sinks)]

    def loss(out, lse):
        return out.double().square().sum() + (lse.double().sin().sum() if with_lse else 0)

    loss(*flash3.attention(*qkv, causal=True, sinks=sinks, return_lse=True, engine=engine)).backward()
    loss(*naive(*wide[:3], causal=True, sinks=wide[3])).backward()
    for tensor, exact in zip((*qkv, sinks), wide):
        torch.testing.assert_close(tensor.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_gradient_of_lse_alone_and_of_expanded_gradient(tensors, engine):
    qkv = tensors(requires_grad=True)
    wide = [t.detach().double().requires_grad_() for t in qkv]
    flash3.attention(*qkv, return_lse=True, engine=engine)[1].sum().backward()
    naive(*wide)[1].sum().backward()
    torch.testing.assert_close(qkv[0].grad.double(), wide[0].grad, rtol=1e-4, atol=1e-5)
    flash3.attention(*qkv, engine=engine).sum().backward()  # its gradient is one element, expanded
    assert qkv[2].grad.abs().sum() > 0


def test_variable_length_gradients(random, engine):
    query, key, value = (torch.from_numpy(random.standard_normal((12, h, 8)).astype(np.float32)) for h in (4, 2, 2))
    lengths = torch.tensor([0, 5, 5, 11], dtype=torch.int32)
    for tensor in (query, key, value):
        tensor.requires_grad_()
    options = {"cu_seqlens_q": lengths, "cu_seqlens_k": lengths, "causal": True, "engine": engine}
    flash3.attention(query, key, value, **options).square().sum().backward()
    for first, last in ((0, 5), (5, 11)):
        wide = [t.detach()[first:last].double().unsqueeze(0).requires_grad_() for t in (query, key, value)]
        naive(*wide, causal=True)[0].square().sum().backward()
        for tensor, exact in zip((query, key, value), wide):
            torch.testing.assert_close(tensor.grad[first:last].double(), exact.grad[0], rtol=1e-4, atol=1e-5)
    assert (query.grad[11:] == 0).all() and (key.grad[11:] == 0).all()


def test_a_second_derivative_is_refused(tensors, engine):
    qkv = tensors(requires_grad=True)
    (gradient,) = torch.autograd.grad(flash3.attention(*qkv, engine=engine).square().sum(), qkv[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.sum().backward()


def test_what_backward_cannot_do_is_refused_at_the_forward_call(tensors):
    qkv = tensors()
    wanting = tensors(requires_grad=True)
    for arguments in (qkv, wanting):
        with pytest.raises(NotImplementedError, match="engine emulator cannot run this problem"):
            flash3.attention(*arguments, engine="emulator")
    run = torch.compile(lambda *a: flash3.attention(*a, engine="emulator"), fullgraph=True, backend="aot_eager")
    with pytest.raises(NotImplementedError, match="engine emulator cannot run this problem"):
        run(*wanting)


def test_errors(tensors, engine):
    query, key, value = tensors(requires_grad=True)
    with pytest.raises(TypeError, match="causal: is str, accepted is True or False"):
        flash3.attention(query, key, value, causal="yes", engine=engine)
    with pytest.raises(ValueError, match="key: dtype is float16, accepted is float32"):
        flash3.attention(query, key.half(), value, engine=engine)
    with pytest.raises(ValueError, match="its dtype is torch.int64"):
        flash3.attention(query, key, value, seqused_k=torch.tensor([1, 2]), engine=engine)
    with pytest.raises(ValueError, match="out: is given where a gradient is asked for"):
        flash3.attention(query, key, value, out=torch.empty_like(query), engine=engine)
    with pytest.raises(ValueError, match="an input requires a gradient, but query is no PyTorch tensor"):
        flash3.attention(query.detach().numpy(), key, value, engine=engine)
    with pytest.raises(ValueError, match="key: "):
        flash3.attention(query.detach(), key.detach().to("meta"), value.detach(), engine=engine)
    with pytest.raises(ValueError, match="query: "):
        flash3.attention(query.detach().to_sparse(), key.detach(), value.detach(), engine=engine)
    freed = key.detach().clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="key: data is null"):
        flash3.attention(query.detach(), freed, value.detach(), engine=engine)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(tensors, engine, requires_grad):
    qkv = tensors(requires_grad=requires_grad)
    ops = torch.ops.flash3
    arguments = operator_arguments(*qkv, engine, requires_grad)
    torch.library.opcheck(ops.attention_forward.default, arguments)
    out, lse = (t.detach() for t in ops.attention_forward(*arguments))
    if not requires_grad:
        torch.library.opcheck(ops.attention_forward_into.default, (*arguments[:-1], torch.empty_like(out)))
        backward = (torch.randn_like(out), torch.randn_like(lse), out, lse, *arguments[:-1])
        torch.library.opcheck(ops.attention_backward.default, backward)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(tensors, engine, backend):
    """No graph break, dynamic shapes, and the bits of the eager call."""

    def f(query, key, value):
        out, lse = flash3.attention(query * 2, key, value, causal=True, window_left=3, return_lse=True, engine=engine)
        return out + 1, lse

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    for batch, seqlen in ((2, 6), (3, 9), (1, 31)):
        qkv = tensors(batch=batch, seqlen=seqlen)
        for result, expected in zip(compiled(*qkv), f(*qkv)):
            assert torch.equal(result, expected)


def test_compile_gradients(tensors, engine):
    def f(query, key, value):
        return flash3.attention(query, key, value, causal=True, engine=engine).square().sum()

    eager, compiled = tensors(requires_grad=True), None
    f(*eager).backward()
    compiled = [t.detach().clone().requires_grad_() for t in eager]
    torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")(*compiled).backward()
    for tensor, expected in zip(compiled, eager):
        assert torch.equal(tensor.grad, expected.grad)


def test_compile_out(tensors, engine):
    qkv = tensors()

    def f(out):
        flash3.attention(*qkv, out=out, engine=engine)
        return out + 1

    result = torch.compile(f, fullgraph=True, backend="aot_eager")(torch.zeros(2, 6, 4, 8))
    assert torch.equal(result, flash3.attention(*qkv, engine=engine) + 1)


def test_first_use_may_be_compiled(engine):
    code = f"""
import torch, flash3
f = torch.compile(lambda *a: flash3.attention(*a, engine={engine!r}), fullgraph=True, backend="aot_eager")
t = torch.ones(1, 4, 2, 8)
assert torch.equal(f(t, t, t), t)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_export(tensors, engine):
    class Model(torch.nn.Module):
        def forward(self, query, key, value):
            return flash3.attention(query, key, value, causal=True, engine=engine)

    qkv = tensors()
    seqlen = torch.export.Dim("seqlen", min=2, max=64)
    exported = torch.export.export(Model(), tuple(qkv), dynamic_shapes=[{1: seqlen}] * 3)
    other = tensors(seqlen=13)
    assert torch.equal(exported.module()(*other), Model()(*other))


def test_autocast(tensors, engine):
    qkv = tensors(requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = flash3.attention(*qkv, causal=True, engine=engine)
    expected = flash3.attention(*(t.bfloat16() for t in qkv), causal=True, engine=engine)
    assert out.dtype is torch.bfloat16 and torch.equal(out, expected)
    out.sum().backward()
    assert qkv[0].grad.dtype is torch.float32


def test_func_transforms(tensors, engine):
    query, key, value = tensors()
    other = torch.stack([query, 2 * query])

    def f(query):
        return flash3.attention(query, key, value, causal=True, engine=engine)

    def loss(query):
        return f(query).square().sum()

    each = [f(q) for q in other]
    assert torch.equal(torch.vmap(f)(other), torch.stack(each))
    assert torch.equal(torch.vmap(f, in_dims=3)(other.movedim(0, 3)), torch.stack(each))
    leaf = query.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(query), leaf.grad)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(other)[0], leaf.grad)
    with pytest.raises(NotImplementedError, match="sinks: is given under torch.vmap"):
        torch.vmap(lambda q: flash3.attention(q, key, value, sinks=torch.zeros(4), engine=engine))(other)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(f, (query,), (query,))


def test_numpy_free(engine):
    """PyTorch alone is enough."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("numpy", "jax", "jaxlib", "ml_dtypes")))
import torch, flash3
t = torch.ones(1, 4, 2, 8, requires_grad=True)
out = flash3.attention(t, t, t, causal=True, engine={engine!r})
out.sum().backward()
assert torch.equal(out, t)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
