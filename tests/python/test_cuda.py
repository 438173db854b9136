"""CUDA tensors on the Hopper kernels, through every door. Needs a Hopper GPU and a wheel with the CUDA part; else skipped.

bench/hopper/run.sh --wheel FILE runs this beside the kernels' own tests.
"""

import itertools
import os
import subprocess
import sys
import threading

import pytest

torch = pytest.importorskip("torch")

import flash3


def why_not():
    """What is missing to run these tests; nothing if they can run."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    if torch.cuda.get_device_capability() != (9, 0):
        return f"{torch.cuda.get_device_name()} is no Hopper GPU"
    tensor = torch.zeros(1, 8, 1, 64, dtype=torch.float16, device="cuda")
    try:
        engine = flash3.plan(tensor, tensor, tensor).engine
    except NotImplementedError as reason:
        if "this build has no CUDA kernels" in str(reason):
            return "this wheel was built without the CUDA part"
        raise
    assert engine == "cuda"
    return None


REASON = why_not()
if REASON:
    if os.environ.get("FLASH3_GPU_TESTS") == "required":
        raise RuntimeError(f"the GPU tests cannot run: {REASON}")
    pytest.skip(REASON, allow_module_level=True)

from flash3 import _flash3
from flash3 import flash_attn_interface as fa

DTYPES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(11)


def make(batch=2, seqlen_q=77, seqlen_kv=130, heads=(4, 2), head_dim=64, head_dim_v=None, dtype=torch.bfloat16):
    def tensor(seqlen, h, d):
        return torch.randn(batch, seqlen, h, d, device="cuda", dtype=torch.float32).to(dtype)

    shapes = (
        (seqlen_q, heads[0], head_dim),
        (seqlen_kv, heads[1], head_dim),
        (seqlen_kv, heads[1], head_dim_v or head_dim),
    )
    return [tensor(*shape) for shape in shapes]


def naive(query, key, value, *, causal=False, window_left=None, softcap=0.0, sinks=None, used_k=None):
    """The definition, in the tensors' own precision. Returns out and lse."""
    group = query.shape[2] // key.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (query, key.repeat_interleave(group, 2), value.repeat_interleave(group, 2)))
    scores = (q @ k.transpose(-1, -2)) / query.shape[-1] ** 0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    rows, columns = scores.shape[-2:]
    used = torch.full((query.shape[0],), columns, device="cuda") if used_k is None else used_k
    position = torch.arange(rows, device="cuda")[None, :, None] + (used - rows)[:, None, None]
    column = torch.arange(columns, device="cuda")[None, None]
    visible = (column < used[:, None, None]).expand(-1, rows, -1).clone()
    if causal:
        visible &= column <= position
    if window_left is not None:
        visible &= column >= position - window_left
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    logits = scores
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        logits = torch.cat([scores, sink.masked_fill(~visible.any(-1)[:, None, :, None], float("-inf"))], -1)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(scores - lse.unsqueeze(-1)).nan_to_num(0.0)
    return (weights @ v).transpose(1, 2), lse


def check(out, query, key, value, lse=None, **options):
    """Error at most twice that of the naive computation in the same precision, plus one unit in the last place."""
    exact, exact_lse = naive(query.double(), key.double(), value.double(), **options)
    rough, _ = naive(query, key, value, **options)
    eps = torch.finfo(query.dtype).eps
    allowed = 2 * (rough.double() - exact).abs().max() + eps * exact.abs().max()
    assert (out.double() - exact).abs().max() <= allowed
    if lse is not None:
        torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-4, atol=1e-4)


OPTIONS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window_left": 20},
    "softcap": {"softcap": 3.0},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(dtype, head_dim, name):
    qkv = make(dtype=dtype, head_dim=head_dim)
    out, lse = flash3.attention(*qkv, return_lse=True, **OPTIONS[name])
    assert type(out) is torch.Tensor and out.device == qkv[0].device and out.dtype is dtype and out.is_contiguous()
    check(out, *qkv, lse, **OPTIONS[name])
    assert torch.equal(flash3.attention(*qkv, **OPTIONS[name]), out)


def test_sinks_lengths_strides_and_out():
    query, key, value = make()
    sinks = torch.linspace(-2, 2, 4, device="cuda")
    check(flash3.attention(query, key, value, causal=True, sinks=sinks), query, key, value, causal=True, sinks=sinks)
    used = torch.tensor([130, 91], dtype=torch.int32, device="cuda")
    key[1, 91:] = float("nan")
    out = flash3.attention(query, key, value, seqused_k=used)
    key[1, 91:] = 0
    check(out, query, key, value, used_k=used)
    expected = flash3.attention(query, key, value)
    heads_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value)]
    assert torch.equal(flash3.attention(*heads_first), expected)
    given = torch.full((2, 4, 77, 64), 7.0, device="cuda", dtype=query.dtype).transpose(1, 2)
    assert flash3.attention(query, key, value, out=given) is given and torch.equal(given, expected)


@pytest.mark.parametrize("bounded", [False, True])
def test_variable_length(bounded):
    lengths = [0, 100, 100, 131, 260]
    query, key, value = (t[0] for t in make(batch=1, seqlen_q=270, seqlen_kv=270))
    cu = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    bounds = {"max_seqlen_q": 129, "max_seqlen_k": 129} if bounded else {}
    out, lse = flash3.attention(
        query, key, value, cu_seqlens_q=cu, cu_seqlens_k=cu, causal=True, return_lse=True, **bounds
    )
    for first, last in itertools.pairwise(lengths):
        if last > first:
            check(out[None, first:last], *(t[None, first:last] for t in (query, key, value)), causal=True)
    assert (out[260:] == 0).all() and torch.isneginf(lse[:, 260:]).all()


def test_the_plan_and_the_stream():
    qkv = make()
    plan = flash3.plan(*qkv, causal=True)
    assert plan.engine == "cuda" and plan.num_threads == 0 and "Hopper" in plan.kernel
    stream = torch.cuda.Stream()
    assert _flash3.current_stream(qkv[0]) == torch.cuda.current_stream().cuda_stream
    with torch.cuda.stream(stream):
        assert _flash3.current_stream(qkv[0]) == stream.cuda_stream != 0


def late(qkv, cycles=200_000_000):
    """Tensors that hold NaN until the current stream has slept, and the real values then."""
    slow = [torch.full_like(t, float("nan")) for t in qkv]
    torch.cuda.synchronize()
    torch.cuda._sleep(cycles)
    for tensor, real in zip(slow, qkv):
        tensor.copy_(real)
    return slow


@pytest.mark.parametrize("door", ["attention", "operator", "compiled", "dlpack"])
def test_the_current_stream_is_used(door):
    """The work waits for what the caller queued before it on the same stream, and no other stream does."""
    qkv = make()
    expected = flash3.attention(*qkv, causal=True)
    run = {
        "attention": lambda *t: flash3.attention(*t, causal=True),
        "operator": lambda *t: torch.ops.flash3.attention_forward(
            *t, *[None] * 6, None, True, "bottom_right", None, None, 0.0, None, None, "automatic", 0, False
        )[0],
        "compiled": torch.compile(lambda *t: flash3.attention(*t, causal=True), fullgraph=True, backend="aot_eager"),
        # An object with DLPack's Python protocol alone: its producer makes the stream wait.
        "dlpack": lambda q, k, v: flash3.attention(q, OnlyDLPack(k), v, causal=True),
    }[door]
    run(*qkv)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = run(*late(qkv))
    assert not stream.query()  # the call did not wait
    stream.synchronize()
    assert torch.equal(out, expected)


class OnlyDLPack:
    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tensor.shape

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **keywords):
        return self.tensor.__dlpack__(**keywords)


def test_threads():
    """Sixteen at once, each on a stream of its own."""
    problems = [make(seqlen_q=50 + 9 * i) for i in range(16)]
    expected = [flash3.attention(*qkv, causal=True) for qkv in problems]
    torch.cuda.synchronize()
    wrong = []

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                if not torch.equal(flash3.attention(*problems[i], causal=True), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_cuda_graph():
    static = make()
    flash3.attention(*static, causal=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = flash3.attention(*static, causal=True, return_lse=True)
    for _ in range(3):
        fresh = make()
        for tensor, new in zip(static, fresh):
            tensor.copy_(new)
        graph.replay()
        for result, expected in zip((out, lse), flash3.attention(*fresh, causal=True, return_lse=True)):
            assert torch.equal(result, expected)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(mode):
    """No graph break, dynamic shapes, the bits of the eager call; in CUDA graphs too."""

    def f(query, key, value):
        out, lse = flash3.attention(query * 2, key, value, causal=True, window_left=30, return_lse=True)
        return out + 1, lse

    compiled = torch.compile(f, fullgraph=True, dynamic=mode == "default", mode=mode)
    for batch, seqlen in ((2, 64), (2, 64), (2, 64), (3, 100)):
        qkv = make(batch=batch, seqlen_q=seqlen, seqlen_kv=seqlen)
        for result, expected in zip(compiled(*qkv), f(*qkv)):
            assert torch.equal(result, expected)


def test_opcheck():
    options = (None, True, "bottom_right", 3, None, 0.0, None, None, "automatic", 0)
    qkv = make(seqlen_q=9, seqlen_kv=9)
    torch.library.opcheck(torch.ops.flash3.attention_forward.default, (*qkv, *[None] * 6, *options, False))
    into = (*qkv, *[None] * 6, *options, torch.empty_like(qkv[0]))
    torch.library.opcheck(torch.ops.flash3.attention_forward_into.default, into)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast(dtype):
    qkv = make(dtype=torch.float32)
    with torch.autocast("cuda", dtype):
        out = flash3.attention(*qkv, causal=True)
    assert out.dtype is dtype and torch.equal(out, flash3.attention(*(t.to(dtype) for t in qkv), causal=True))


def test_inference_mode_and_vmap():
    query, key, value = make()
    expected = flash3.attention(query, key, value)
    with torch.inference_mode():
        assert torch.equal(flash3.attention(query, key, value), expected)
    many = torch.stack([query, 2 * query])
    out = torch.vmap(lambda q: flash3.attention(q, key, value))(many)
    assert torch.equal(out[0], expected)


def test_a_gradient_is_refused_at_the_forward_call():
    qkv = make()
    wanting = [t.detach().requires_grad_() for t in qkv]
    doors = [
        lambda: flash3.attention(*wanting),
        lambda: fa.flash_attn_func(*wanting),
        lambda: torch.compile(lambda *a: flash3.attention(*a), fullgraph=True, backend="aot_eager")(*wanting),
        lambda: torch.func.grad(lambda q: flash3.attention(q, *qkv[1:]).sum())(qkv[0]),
    ]
    for door in doors:
        with pytest.raises(NotImplementedError, match="it has no backward kernels yet"):
            door()
    with torch.no_grad():
        assert torch.equal(flash3.attention(*wanting), flash3.attention(*qkv))


def test_errors():
    query, key, value = make()
    with pytest.raises(ValueError, match="key: is on cpu, accepted is cuda:0, where query is"):
        flash3.attention(query, key.cpu(), value)
    with pytest.raises(ValueError, match="key: is on cuda:0, accepted is cpu, where query is"):
        flash3.attention(query.cpu(), key, value)
    with pytest.raises(ValueError, match="out: is on cpu, accepted is cuda:0"):
        flash3.attention(query, key, value, out=torch.empty(query.shape, dtype=query.dtype))
    with pytest.raises(ValueError, match="seqused_k: is on cpu, accepted is cuda:0"):
        flash3.attention(query, key, value, seqused_k=torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(NotImplementedError, match="dtype is float32; the Hopper kernels take float16 and bfloat16"):
        flash3.attention(query.float(), key.float(), value.float())
    with pytest.raises(NotImplementedError, match="do not take a bias yet"):
        flash3.attention(query, key, value, bias=torch.zeros(1, 1, 77, 130, device="cuda"))
    with pytest.raises(NotImplementedError, match="query is not aligned to 16 bytes"):
        flash3.attention(query.new_zeros(query.numel() + 1)[1:].view(query.shape), key, value)
    with pytest.raises(NotImplementedError, match="engine cpu cannot run this problem"):
        flash3.attention(query, key, value, engine="cpu")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    qkv = make()
    other = [t.to("cuda:1") for t in qkv]
    assert torch.cuda.current_device() == 0
    out = flash3.attention(*other)
    assert out.device == torch.device("cuda:1") and torch.equal(out.to("cuda:0"), flash3.attention(*qkv))
    assert torch.cuda.current_device() == 0


def test_flash_attn_interface():
    query, key, value = make(seqlen_q=130)
    expected, expected_lse = flash3.attention(query, key, value, causal=True, return_lse=True)
    out, lse = fa.flash_attn_func(query, key, value, causal=True, return_attn_probs=True)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    packed = torch.cat([query, key, value], 2)
    assert torch.equal(fa.flash_attn_qkvpacked_func(packed, causal=True, num_heads_q=4), expected)
    cu = torch.tensor([0, 130, 260], dtype=torch.int32, device="cuda")
    rows = [t.flatten(0, 1) for t in (query, key, value)]
    assert torch.equal(fa.flash_attn_varlen_func(*rows, cu, cu, 130, 130, causal=True).view(expected.shape), expected)


def test_kvcache():
    query, new_k, new_v = make(seqlen_q=3, seqlen_kv=3)
    _, k_cache, v_cache = make(seqlen_kv=64)
    lengths = torch.tensor([40, 9], dtype=torch.int32, device="cuda")
    metadata = fa.get_scheduler_metadata(2, 3, 64, 4, 2, 64, lengths, causal=True)
    options = {"cache_seqlens": lengths, "causal": True, "scheduler_metadata": metadata, "return_softmax_lse": True}
    out, lse, *_ = fa.flash_attn_with_kvcache(query, k_cache, v_cache, new_k, new_v, **options)
    for b, length in enumerate((40, 9)):
        assert torch.equal(k_cache[b, length : length + 3], new_k[b])
        keys, values = (t[b, None, : length + 3] for t in (k_cache, v_cache))
        check(out[b, None], query[b, None], keys, values, lse[b, None], causal=True)
    parts = [flash3.attention(query, k_cache[:, a:b], v_cache[:, a:b], return_lse=True) for a, b in ((0, 20), (20, 64))]
    merged, _ = fa.flash_attn_combine(
        torch.stack([o.float() for o, _ in parts]),
        torch.stack([s.transpose(1, 2) for _, s in parts]),
        out_dtype=out.dtype,
    )
    torch.testing.assert_close(merged, flash3.attention(query, k_cache, v_cache), rtol=2e-2, atol=2e-2)


@pytest.fixture
def sdpa_backend():
    if not hasattr(torch.nn.attention, "activate_flash_attention_impl"):
        pytest.skip("this PyTorch has no registry of flash backends")
    import flash3.integrations.sdpa

    flash3.integrations.sdpa.register()
    torch.nn.attention.activate_flash_attention_impl("flash3")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        yield
    torch.nn.attention.restore_flash_attention_impl(False)


@pytest.mark.usefixtures("sdpa_backend")
def test_sdpa():
    sdpa = torch.nn.functional.scaled_dot_product_attention
    qkv = make(seqlen_q=130, heads=(4, 4))
    heads_first = [t.transpose(1, 2) for t in qkv]
    out = sdpa(*heads_first, is_causal=True)
    assert torch.equal(out.transpose(1, 2), flash3.attention(*qkv, causal=True))
    compiled = torch.compile(lambda *a: sdpa(*a, is_causal=True), fullgraph=True)
    torch.testing.assert_close(compiled(*heads_first), out, rtol=0, atol=0)
    with pytest.raises(NotImplementedError, match="it has no backward kernels yet"):
        sdpa(*(t.detach().requires_grad_() for t in heads_first))
    with pytest.raises(NotImplementedError, match="dropout_p: is 0.5"):
        sdpa(*heads_first, dropout_p=0.5)


@pytest.mark.usefixtures("sdpa_backend")
def test_varlen_attn():
    from torch.nn.attention.varlen import varlen_attn

    rows = [t[0] for t in make(batch=1, seqlen_q=260, seqlen_kv=260, heads=(4, 4))]
    cu = torch.tensor([0, 100, 260], dtype=torch.int32, device="cuda")
    out = varlen_attn(*rows, cu, cu, 160, 160, window_size=(-1, 0))
    assert torch.equal(out, flash3.attention(*rows, cu_seqlens_q=cu, cu_seqlens_k=cu, causal=True))


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_transformers(name, padding):
    """Greedy generation in bfloat16: logits as good as eager's, and each token the best of them, or as good as that."""
    pytest.importorskip("transformers")
    import flash3.integrations.transformers
    import test_transformers

    flash3.integrations.transformers.register()
    eager = test_transformers.model(name, "eager").to("cuda", torch.bfloat16)
    ours = test_transformers.model(name, "flash3").to("cuda", torch.bfloat16)
    exact = test_transformers.model(name, "eager").to("cuda", torch.bfloat16).float()
    tokens = torch.randint(1, 97, (2, 23), generator=torch.Generator().manual_seed(7)).cuda()
    mask = torch.ones_like(tokens)
    if padding == "left":
        mask[1, :9] = 0
    with torch.no_grad():
        made = ours.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False)
        assert made.shape == (2, 35)
        mask = torch.nn.functional.pad(mask, (0, 12), value=1)
        kept = mask.bool()
        wanted = exact(made, attention_mask=mask).logits
        errors = [(m(made, attention_mask=mask).logits.float() - wanted)[kept].abs() for m in (ours, eager)]
    assert errors[0].mean() <= 3 * errors[1].mean() + 5e-3
    choices = wanted[:, 22:-1]
    taken = choices.gather(-1, made[:, 23:, None]).squeeze(-1)
    assert (choices.max(-1).values - taken <= 4 * errors[1].max() + 1e-2).all()


JAX = """
import numpy as np, jax, jax.numpy as jnp
import flash3, flash3.jax
assert jax.default_backend() == "gpu", jax.default_backend()
keys = jax.random.split(jax.random.key(1), 3)
q, k, v = (jax.random.normal(key, (2, 130, h, 64), jnp.bfloat16) for key, h in zip(keys, (4, 2, 2)))
run = lambda q, k, v, **o: flash3.jax.attention(q, k, v, causal=True, return_lse=True, **o)
out, lse = run(q, k, v)
again, again_lse = jax.jit(run)(q, k, v)
assert jnp.array_equal(out, again) and jnp.array_equal(lse, again_lse)
import torch
t = [torch.from_dlpack(a) for a in (q, k, v)]
expected, expected_lse = flash3.attention(*t, causal=True, return_lse=True)
assert np.array_equal(np.asarray(out, np.float32), expected.float().cpu().numpy())
assert np.array_equal(np.asarray(lse), expected_lse.cpu().numpy())
many = jnp.stack([q, 2 * q])
assert jnp.array_equal(jax.vmap(lambda q: run(q, k, v)[0])(many)[0], out)
cu = jnp.asarray([0, 100, 250], jnp.int32)
flat = [a.reshape(-1, *a.shape[2:]) for a in (q, k, v)]
packed = jax.jit(lambda *a: run(*a[:3], cu_seqlens_q=a[3], cu_seqlens_k=a[3], max_seqlen_q=150, max_seqlen_k=150))
out, lse = packed(*flat, cu)
assert (out[250:] == 0).all() and jnp.isneginf(lse[:, 250:]).all() and not jnp.isneginf(lse[:, :250]).any()
for f in (jax.grad, lambda f: jax.jit(jax.grad(f))):
    try:
        f(lambda q: run(q, k, v)[0].astype(jnp.float32).sum())(q)
    except NotImplementedError as e:
        assert "no backward kernels" in str(e), e
    else:
        raise AssertionError("a gradient was not refused")
"""


def test_jax():
    pytest.importorskip("jax")
    environment = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    result = subprocess.run([sys.executable, "-c", JAX], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def test_cupy():
    cupy = pytest.importorskip("cupy")
    qkv = make(dtype=torch.float16)
    expected = flash3.attention(*qkv, causal=True)
    arrays = [cupy.from_dlpack(t) for t in qkv]
    out = flash3.attention(*arrays, causal=True)
    assert isinstance(out, cupy.ndarray)
    assert torch.equal(torch.from_dlpack(out), expected)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        assert _flash3.current_stream(arrays[0]) == stream.ptr
        out = flash3.attention(*arrays, causal=True)
        stream.synchronize()
    assert torch.equal(torch.from_dlpack(out), expected)
