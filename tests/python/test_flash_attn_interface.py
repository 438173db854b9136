"""The drop-in for FlashAttention-3's module: its names, order and defaults, served by the automatic engine."""

import inspect

import pytest

torch = pytest.importorskip("torch")

import flash3
from flash3 import flash_attn_interface as fa

# Argument names and defaults of the published module, in order.
TUNING = "num_splits=1 pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False"
COMMON = "qv=None q_descale=None k_descale=None v_descale=None window_size=(-1,-1) attention_chunk=0 softcap=0.0"
SIGNATURES = {
    "flash_attn_func": f"q k v softmax_scale=None causal=False {COMMON} {TUNING}",
    "flash_attn_varlen_func": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q=None seqused_k=None "
    f"softmax_scale=None causal=False {COMMON} {TUNING}",
    "flash_attn_qkvpacked_func": "qkv softmax_scale=None causal=False q_descale=None k_descale=None v_descale=None "
    "window_size=(-1,-1) attention_chunk=0 softcap=0.0 deterministic=False num_heads_q=None sm_margin=0 "
    "return_attn_probs=False",
    "flash_attn_with_kvcache": "q k_cache v_cache k=None v=None qv=None rotary_cos=None rotary_sin=None "
    "cache_seqlens=None cache_batch_idx=None cache_leftpad=None page_table=None cu_seqlens_q=None "
    "cu_seqlens_k_new=None max_seqlen_q=None rotary_seqlens=None q_descale=None k_descale=None v_descale=None "
    "softmax_scale=None causal=False window_size=(-1,-1) attention_chunk=0 softcap=0.0 rotary_interleaved=True "
    "scheduler_metadata=None num_splits=0 pack_gqa=None sm_margin=0 return_softmax_lse=False",
    "flash_attn_combine": "out_partial lse_partial out=None out_dtype=None",
    "get_scheduler_metadata": "batch_size max_seqlen_q max_seqlen_k num_heads_q num_heads_kv headdim cache_seqlens "
    "qkv_dtype=torch.bfloat16 headdim_v=None cu_seqlens_q=None cu_seqlens_k_new=None cache_leftpad=None "
    "page_size=None max_seqlen_k_new=0 causal=False window_size=(-1,-1) attention_chunk=0 has_softcap=False "
    "num_splits=0 pack_gqa=None sm_margin=0",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = inspect.signature(getattr(fa, name)).parameters.values()
    ours = [p.name if p.default is p.empty else f"{p.name}={p.default}".replace(" ", "") for p in parameters]
    assert ours == SIGNATURES[name].split()


@pytest.fixture
def qkv(engine, random):
    if engine == "reference":
        pytest.skip("the drop-in takes the automatic engine, and there is none")

    def make(*shape, heads=(4, 2, 2), dtype=torch.float32):
        def tensor(h):
            return torch.from_numpy(random.standard_normal((*shape, h, 16))).to(dtype)

        return [tensor(h) for h in heads]

    return make


def test_func(qkv):
    q, k, v = qkv(2, 9)
    for options, ours in (
        ({}, {}),
        ({"causal": True}, {"causal": True}),
        ({"window_size": (3, -1)}, {"window_left": 3}),
        ({"window_size": (-1, 2), "softcap": 3.0}, {"window_right": 2, "softcap": 3.0}),
        ({"softmax_scale": 0.3, "num_splits": 3, "pack_gqa": True, "deterministic": True}, {"softmax_scale": 0.3}),
    ):
        expected, expected_lse = flash3.attention(q, k, v, return_lse=True, **ours)
        assert torch.equal(fa.flash_attn_func(q, k, v, **options), expected)
        out, lse = fa.flash_attn_func(q, k, v, return_attn_probs=True, **options)
        assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


def test_func_has_gradients(qkv):
    q, k, v = (t.requires_grad_() for t in qkv(2, 9))
    fa.flash_attn_func(q, k, v, None, True).square().sum().backward()
    ours = [t.grad for t in (q, k, v)]
    q.grad = k.grad = v.grad = None
    flash3.attention(q, k, v, causal=True).square().sum().backward()
    assert all(torch.equal(a, t.grad) for a, t in zip(ours, (q, k, v)))


def test_qkvpacked(qkv):
    q, k, v = qkv(2, 9, heads=(3, 3, 3))
    expected = flash3.attention(q, k, v, causal=True)
    packed = torch.stack([q, k, v], 2).requires_grad_()
    out = fa.flash_attn_qkvpacked_func(packed, causal=True)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert packed.grad.shape == packed.shape
    q, k, v = qkv(2, 9)
    out = fa.flash_attn_qkvpacked_func(torch.cat([q, k, v], 2), causal=True, num_heads_q=4)
    assert torch.equal(out, flash3.attention(q, k, v, causal=True))
    with pytest.raises(ValueError, match="qkv: shape is"):
        fa.flash_attn_qkvpacked_func(torch.cat([q, k, v], 2))


def test_varlen(qkv):
    q, k, v = qkv(20)
    cu = torch.tensor([0, 7, 7, 20], dtype=torch.int32)
    out, lse = fa.flash_attn_varlen_func(q, k, v, cu, cu, 13, 13, causal=True, return_attn_probs=True)
    with pytest.raises(ValueError, match="max_seqlen_k: is 12, but the longest sequence of cu_seqlens_k has 13 rows"):
        fa.flash_attn_varlen_func(q, k, v, cu, cu, 13, 12)
    assert lse.shape == (4, 20)
    for first, last in ((0, 7), (7, 20)):
        alone = flash3.attention(*(t[None, first:last] for t in (q, k, v)), causal=True)
        torch.testing.assert_close(out[first:last], alone[0])


def test_kvcache(qkv):
    q, new_k, new_v = qkv(2, 3)
    _, k_cache, v_cache = qkv(2, 12)
    before = k_cache.clone()
    lengths = torch.tensor([4, 9], dtype=torch.int32)
    out = fa.flash_attn_with_kvcache(q, k_cache, v_cache, new_k, new_v, cache_seqlens=lengths, causal=True)
    for b, length in enumerate((4, 9)):
        assert torch.equal(k_cache[b, length : length + 3], new_k[b])
        assert torch.equal(k_cache[b, :length], before[b, :length])
        assert torch.equal(k_cache[b, length + 3 :], before[b, length + 3 :])
        keys, values = (t[b, None, : length + 3] for t in (k_cache, v_cache))
        torch.testing.assert_close(out[b, None], flash3.attention(q[b, None], keys, values, causal=True))
    again = fa.flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=lengths + 3, causal=True, rotary_seqlens=lengths
    )  # which rotates nothing without rotary_cos and rotary_sin: callers pass it always
    assert torch.equal(again, out)
    out, lse, *rest = fa.flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=5, return_softmax_lse=True)
    torch.testing.assert_close(out, flash3.attention(q, k_cache[:, :5], v_cache[:, :5]))
    assert lse.shape == (2, 4, 3) and [t.numel() for t in rest] == [0, 0]
    with pytest.raises(ValueError, match="k: its 3 rows end at row 13, beyond the cache's 12"):
        fa.flash_attn_with_kvcache(q, k_cache, v_cache, new_k, new_v, cache_seqlens=10)


def test_combine(qkv):
    q, k, v = qkv(2, 9)
    whole, whole_lse = flash3.attention(q, k, v, return_lse=True)
    parts = [flash3.attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 4), (4, 4), (4, 9))]
    out_partial = torch.stack([out for out, _ in parts])
    out_partial[1] = float("nan")  # a part without weight may hold anything
    lse_partial = torch.stack([lse.transpose(1, 2) for _, lse in parts])
    out, lse = fa.flash_attn_combine(out_partial, lse_partial)
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(lse, whole_lse.transpose(1, 2))
    out, lse = fa.flash_attn_combine(out_partial[1:2], lse_partial[1:2])
    assert (out == 0).all() and torch.isneginf(lse).all()
    given = torch.empty_like(whole)
    assert fa.flash_attn_combine(out_partial, lse_partial, out=given)[0] is given
    assert fa.flash_attn_combine(out_partial, lse_partial, out_dtype=torch.bfloat16)[0].dtype is torch.bfloat16


UNSERVED = {
    fa.flash_attn_func: ["qv", "q_descale", "k_descale", "v_descale", "attention_chunk"],
    fa.flash_attn_with_kvcache: [
        "qv", "rotary_cos", "rotary_sin", "cache_batch_idx", "cache_leftpad", "page_table", "cu_seqlens_k_new",
        "q_descale", "k_descale", "v_descale", "attention_chunk",
    ],
}  # fmt: skip


@pytest.mark.parametrize("function, name", [(f, n) for f, names in UNSERVED.items() for n in names])
def test_what_no_engine_serves_is_refused_by_name(function, name):
    tensors = [torch.zeros(1, 4, 2, 16) for _ in range(3)]
    with pytest.raises(NotImplementedError, match=f"^{name}: is given, but no engine serves it"):
        function(*tensors, **{name: 4 if name == "attention_chunk" else torch.zeros(1)})


def test_scheduler_metadata(qkv):
    q, _, _ = qkv(2, 3)
    _, k_cache, v_cache = qkv(2, 12)
    lengths = torch.tensor([4, 9], dtype=torch.int32)
    metadata = fa.get_scheduler_metadata(2, 3, 12, 4, 2, 16, lengths, qkv_dtype=torch.float32, causal=True)
    options = {"cache_seqlens": lengths, "causal": True}
    expected = fa.flash_attn_with_kvcache(q, k_cache, v_cache, **options)
    assert torch.equal(
        fa.flash_attn_with_kvcache(q, k_cache, v_cache, scheduler_metadata=metadata, **options), expected
    )
    other = fa.get_scheduler_metadata(2, 3, 12, 4, 2, 64, lengths)
    with pytest.raises(ValueError, match=r"scheduler_metadata: is for .* \[2, 4, 2, 64, 64\], accepted is one for"):
        fa.flash_attn_with_kvcache(q, k_cache, v_cache, scheduler_metadata=other, **options)
    for wrong in (torch.zeros(6, dtype=torch.int32), torch.zeros(3), 5):
        with pytest.raises(ValueError, match="scheduler_metadata: "):
            fa.flash_attn_with_kvcache(q, k_cache, v_cache, scheduler_metadata=wrong, **options)
    with pytest.raises(NotImplementedError, match="^page_size: is given, but no engine serves it"):
        fa.get_scheduler_metadata(2, 3, 12, 4, 2, 16, lengths, page_size=4)


def test_refused_calls_leave_the_caches_alone(qkv):
    q, new_k, new_v = qkv(2, 3)
    _, k_cache, v_cache = qkv(2, 12)
    before = k_cache.clone(), v_cache.clone()
    for bad in (
        {"softcap": -1.0},
        {"v": new_v[:, :2]},
        {"v": new_v[..., :8]},
        {"v": new_v.half()},
        {"window_size": 3},
        {"cache_seqlens": torch.tensor([4, 10], dtype=torch.int32)},
    ):
        arguments = {"k": new_k, "v": new_v, "cache_seqlens": 4} | bad
        with pytest.raises((ValueError, TypeError), match=next(iter(bad)).replace("cache_seqlens", "k: its 3 rows")):
            fa.flash_attn_with_kvcache(q, k_cache, v_cache, **arguments)
        assert torch.equal(k_cache, before[0]) and torch.equal(v_cache, before[1])


def test_what_is_no_tensor(qkv):
    q, k, v = qkv(2, 3)
    with pytest.raises(TypeError, match="q, k, v: one is list, accepted are PyTorch tensors"):
        fa.flash_attn_func(q, k.tolist(), v)


def test_compile(qkv):
    """No graph break, the bits of the eager call, and the lengths' bounds as sizes of the graph."""
    q, k, v = qkv(20)
    cu = torch.tensor([0, 7, 7, 20], dtype=torch.int32)

    def f(q, k, v, most):
        out = fa.flash_attn_varlen_func(q, k, v, cu, cu, most, most, causal=True, window_size=(5, -1))
        return out + fa.flash_attn_func(q[None], k[None], v[None], causal=True)[0]

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, 13), f(q, k, v, 13))
