"""Small randomly initialised models of Hugging Face transformers: flash3 against eager attention."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import flash3.integrations.transformers


@pytest.fixture(autouse=True)
def registered(engine):
    if engine == "reference":
        pytest.skip("models take the automatic engine, and there is none")
    flash3.integrations.transformers.register()


SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def configuration(name):
    if name == "llama":  # causal, shared key heads
        return transformers.LlamaConfig(**SMALL)
    if name == "gemma2":  # softcap, a sliding window in every second layer
        return transformers.Gemma2Config(
            **SMALL, attn_logit_softcapping=5.0, sliding_window=5, query_pre_attn_scalar=16
        )
    return transformers.GptOssConfig(  # sinks, a sliding window in every second layer
        **SMALL,
        sliding_window=5,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["sliding_attention", "full_attention"],
    )


def model(name, implementation):
    torch.manual_seed(3)
    config = configuration(name)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for parameter, values in made.named_parameters():
            if parameter.endswith("sinks"):
                values.copy_(torch.linspace(-1, 2, values.numel()))
    return made.eval()


NAMES = ["llama", "gemma2", "gpt_oss"]


@pytest.fixture(params=["bias", "packed"])
def either_way(request, monkeypatch):
    """Padding as it is served on a CPU, and as on a GPU."""
    monkeypatch.setattr(flash3.integrations.transformers, "_packs", lambda query: request.param == "packed")


@pytest.fixture
def tokens():
    return torch.randint(1, 97, (2, 23), generator=torch.Generator().manual_seed(7))


def paddings(tokens):
    left, right = torch.ones_like(tokens), torch.ones_like(tokens)
    left[1, :9] = 0
    right[1, -9:] = 0
    return {"none": None, "left": left, "right": right}


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("either_way")
def test_logits(name, tokens, padding):
    mask = paddings(tokens)[padding]
    with torch.no_grad():
        expected = model(name, "eager")(tokens, attention_mask=mask).logits
        logits = model(name, "flash3")(tokens, attention_mask=mask).logits
    kept = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(logits[kept], expected[kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("either_way")
def test_greedy_tokens(name, tokens, padding):
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": paddings(tokens)[padding]}
    if padding == "none":
        options["attention_mask"] = torch.ones_like(tokens)
    expected = model(name, "eager").generate(tokens, **options)
    assert torch.equal(model(name, "flash3").generate(tokens, **options), expected)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("either_way")
def test_static_cache(name, tokens, padding, monkeypatch):
    """A cache with room for more keys than there are."""
    mask = torch.ones_like(tokens) if padding == "none" else paddings(tokens)[padding]
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static", "disable_compile": True}
    expected = model(name, "eager").generate(tokens, attention_mask=mask, **options)
    seen = spy_on_biases(monkeypatch)
    ours = model(name, "flash3").generate(tokens, attention_mask=mask, **options)
    assert torch.equal(ours, expected)
    if padding == "none" or flash3.integrations.transformers._packs(tokens):
        assert set(seen) == {None}


def spy_on_biases(monkeypatch):
    seen = []
    attention = flash3.integrations.transformers.attention

    def spy(*tensors, bias=None, **options):
        seen.append(bias)
        return attention(*tensors, bias=bias, **options)

    monkeypatch.setattr(flash3.integrations.transformers, "attention", spy)
    return seen


@pytest.mark.usefixtures("either_way")
def test_padding_in_the_middle(tokens):
    """Keys left out between others: a window counts them, so its layers take a bias on any engine."""
    mask = torch.ones_like(tokens)
    mask[0, 5:9] = 0
    for name in ("llama", "gemma2"):
        with torch.no_grad():
            expected = model(name, "eager")(tokens, attention_mask=mask).logits
            logits = model(name, "flash3")(tokens, attention_mask=mask).logits
        torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["none", "right"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("either_way")
def test_training(name, tokens, padding):
    """The same losses over a few steps."""
    mask = paddings(tokens)[padding]
    labels = tokens if mask is None else tokens.masked_fill(mask == 0, -100)

    def losses(implementation):
        trained = model(name, implementation).train()
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        seen = []
        for _ in range(4):
            loss = trained(tokens, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen

    expected = losses("eager")
    assert expected[-1] < expected[0]
    assert losses("flash3") == pytest.approx(expected, rel=1e-4)


def test_packed_sequences(tokens):
    """Several sequences in one row, told apart by their positions."""
    positions = torch.cat([torch.arange(9), torch.arange(14)])[None]
    with torch.no_grad():
        expected = model("llama", "eager")(tokens[:1], position_ids=positions, use_cache=False).logits
        logits = model("llama", "flash3")(tokens[:1], position_ids=positions, use_cache=False).logits
        alone = model("llama", "flash3")(tokens[:1, :9]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[:, :9], alone, rtol=1e-4, atol=1e-4)


def test_the_band_is_recognised(tokens, monkeypatch):
    """Unpadded causal and sliding layers reach the engine without a bias."""
    seen = []
    attention = flash3.integrations.transformers.attention

    def spy(*tensors, **options):
        seen.append((options["causal"], options["window_left"], options["bias"]))
        return attention(*tensors, **options)

    monkeypatch.setattr(flash3.integrations.transformers, "attention", spy)
    with torch.no_grad():
        model("gemma2", "flash3")(tokens)
    assert seen == [(True, 4, None), (True, None, None)]


def test_dropout_is_refused(tokens):
    config = configuration("llama")
    config.attention_dropout = 0.1
    training = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="flash3").train()
    with pytest.raises(NotImplementedError, match="dropout: is 0.1, but no engine serves it"):
        training(tokens)
