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
