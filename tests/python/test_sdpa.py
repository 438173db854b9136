"""scaled_dot_product_attention served by flash3 through PyTorch's registry of flash backends."""

import pytest

torch = pytest.importorskip("torch")

if not hasattr(torch.nn.attention, "activate_flash_attention_impl"):
    pytest.skip("this PyTorch has no registry of flash backends", allow_module_level=True)

import flash3.integrations.sdpa

sdpa = torch.nn.functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def calls(engine, monkeypatch):
    """The backend is on; how often it was asked."""
    if engine == "reference":
        pytest.skip("the backend takes the automatic engine, and there is none")
    seen = []
    run = flash3.integrations.sdpa.door._run_forward
    monkeypatch.setattr(flash3.integrations.sdpa.door, "_run_forward", lambda *a: seen.append(1) or run(*a))
    flash3.integrations.sdpa.register()
    assert "flash3" in torch.nn.attention.list_flash_attention_impls()
    torch.nn.attention.activate_flash_attention_impl("flash3")
    yield seen
    torch.nn.attention.restore_flash_attention_impl(False)


@pytest.fixture
def qkv(random):
    def make(seqlen_q=9, seqlen_kv=13, requires_grad=False):
        def tensor(seqlen):
            return torch.from_numpy(random.standard_normal((2, 4, seqlen, 16))).float().requires_grad_(requires_grad)

        return [tensor(s) for s in (seqlen_q, seqlen_kv, seqlen_kv)]

    return make


MASKS = {
    "none": dict,
    "causal": lambda: {"is_causal": True},
    "scale": lambda: {"scale": 0.5},
    "boolean": lambda: {"attn_mask": torch.arange(13).remainder(3).ne(1).expand(9, 13)},
    "additive": lambda: {"attn_mask": torch.linspace(-2, 2, 9 * 13).view(1, 1, 9, 13)},
    "padding": lambda: {"attn_mask": (torch.arange(13) < torch.tensor([13, 6])[:, None])[:, None, None, :]},
}


@pytest.mark.parametrize("name", MASKS)
def test_same_as_without(qkv, calls, name):
    query, key, value = qkv(requires_grad=True)
    options = MASKS[name]()
    out = sdpa(query, key, value, **options)
    out.square().sum().backward()
    assert len(calls) == 1
    ours = [t.grad for t in (query, key, value)]
    wide = [t.detach().double().requires_grad_() for t in (query, key, value)]
    if "attn_mask" in options and options["attn_mask"].dtype is not torch.bool:
        options["attn_mask"] = options["attn_mask"].double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = sdpa(*wide, **options)
    expected.square().sum().backward()
    assert len(calls) == 1
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    for gradient, tensor in zip(ours, wide):
        torch.testing.assert_close(gradient.double(), tensor.grad, rtol=1e-4, atol=1e-5)


def test_dropout_is_refused(qkv):
    with pytest.raises(NotImplementedError, match="dropout_p: is 0.5, but no engine serves it"):
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*qkv(), 0.5)


def test_a_gradient_that_no_engine_has_is_refused_at_the_forward_call(qkv, monkeypatch):
    def plan(inputs, options, backward):
        assert backward
        raise NotImplementedError("no engine has a backward")

    monkeypatch.setattr(flash3.integrations.sdpa._flash3, "plan", plan)
    sdpa(*qkv())
    with torch.no_grad():
        sdpa(*qkv(requires_grad=True))
    with pytest.raises(NotImplementedError, match="no engine has a backward"):
        sdpa(*qkv(requires_grad=True))


def kernel(name):
    """What is registered for CUDA tensors takes CPU tensors too, when called itself."""
    return getattr(flash3.integrations.sdpa, name)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_operators_for_cuda(qkv, transposed):
    query, key, value = qkv(9, 9)
    if transposed:
        query, key, value = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value))
    expected, expected_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
    results = kernel("_forward_cuda")(query, key, value, 0.0, True)
    torch.testing.assert_close(results[0], expected, rtol=0, atol=0)
    torch.testing.assert_close(results[1], expected_lse, rtol=0, atol=0)
    promised = torch.ops.aten._scaled_dot_product_flash_attention(*(t.to("meta") for t in (query, key, value)))
    assert len(results) == len(promised)
    for result, like in zip(results, promised):
        if isinstance(like, torch.Tensor):
            assert (result.shape, result.dtype) == (like.shape, like.dtype) and (
                result is not results[0] or result.stride() == like.stride()
            )
        else:
            assert result == like
    grad_out = torch.linspace(-1, 1, expected.numel()).view(expected.shape)
    gradients = kernel("_backward_cuda")(grad_out, query, key, value, *results[:6], 0.0, True, *results[6:8])
    wanted = [t.clone().requires_grad_() for t in (query, key, value)]
    sdpa(*wanted, is_causal=True).backward(grad_out)
    for gradient, tensor in zip(gradients, wanted):
        torch.testing.assert_close(gradient, tensor.grad, rtol=0, atol=0)


def test_the_operators_for_packed_cuda_tensors(random):
    query, key, value = (torch.from_numpy(random.standard_normal((20, h, 16))).float() for h in (4, 2, 2))
    lengths = torch.tensor([0, 7, 7, 20], dtype=torch.int32)
    windows = {"window_size_left": 4, "window_size_right": -1}
    arguments = (query, key, value, lengths, lengths, 13, 13, 0.0, True)
    out, lse, state, unused, _ = kernel("_forward_packed")(*arguments, False, **windows)
    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    options = {"cu_seqlens_q": lengths, "cu_seqlens_k": lengths, "causal": True, "window_left": 4, "return_lse": True}
    expected, expected_lse = flash3.attention(*leaves, **options)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    grad_out = torch.linspace(-1, 1, out.numel()).view(out.shape)
    expected.backward(grad_out)
    gradients = kernel("_backward_packed")(
        grad_out, query, key, value, out, lse, *arguments[3:], state, unused, **windows
    )
    for gradient, leaf in zip(gradients, leaves):
        assert torch.equal(gradient, leaf.grad)
    with pytest.raises(NotImplementedError, match="alibi_slopes: is given, but no engine serves it"):
        kernel("_forward_packed")(*arguments, False, alibi_slopes=torch.zeros(4))


def test_compiled(qkv, calls):
    tensors = qkv()
    expected = sdpa(*tensors, is_causal=True)
    f = torch.compile(lambda *a: sdpa(*a, is_causal=True), fullgraph=True, backend="aot_eager")
    assert torch.equal(f(*tensors), expected) and len(calls) == 2


def test_restored(qkv, calls):
    torch.nn.attention.restore_flash_attention_impl()
    assert torch.nn.attention.current_flash_attention_impl() is None
    sdpa(*qkv())
    assert calls == []
