"""weft's attention inside transformers: what the model's own code computes, and the same tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weft

transformers = pytest.importorskip("transformers")

from integration.models import BART, GROUPED, NO_DROPOUT, SIZE  # noqa: E402
from weft.integrations import _paged  # noqa: E402
from weft.integrations import transformers as integration  # noqa: E402

VERSION_5 = int(transformers.__version__.split(".")[0]) >= 5
SLIDING = {"sliding_window": 5}
OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "initial_context_length": 64}
GEMMA = {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 12}
DECODERS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, **SLIDING),  # every layer slides
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, **SLIDING, **GEMMA),  # every other one
    "gpt_oss": lambda: transformers.GptOssConfig(**GROUPED, **SLIDING, **OSS),  # and has sinks
}
ENCODERS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SIZE, **NO_DROPOUT),
    "vit": lambda: transformers.ViTConfig(**SIZE, **NO_DROPOUT, image_size=32, patch_size=8),
    "bart": lambda: transformers.BartConfig(**BART),
}
GREEDY = {"max_new_tokens": 12, "do_sample": False}


def pair(config: Any, auto: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model on its own code, and its twin on weft."""
    integration.register()
    stock = auto.from_config(config(), attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.normal_(0 if parameter.dim() > 1 else 0.7, 0.2)
    ours = copy.deepcopy(stock)
    ours.set_attn_implementation("weft")
    return stock, ours


def decoders(name: str) -> tuple[Any, Any]:
    return pair(DECODERS[name], transformers.AutoModelForCausalLM)


def encoders(name: str) -> tuple[Any, Any]:
    return pair(ENCODERS[name], transformers.AutoModel)


def tokens(pad_left: bool = True) -> dict[str, Tensor]:
    """Two sequences, the second padded."""
    ids = torch.randint(3, 99, (2, 13))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 4) if pad_left else slice(9, 13)] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Calls:
    """The options of every call of weft's attention."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def __call__(self, *args: Tensor, **options: Any) -> Any:
        self.options.append(options)
        return weft.attention(*args, **options)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen = Calls()
    monkeypatch.setattr(integration, "attention", seen)
    monkeypatch.setattr(_paged, "attention", seen)
    return seen


# ------------------------------------------------------------------------------- one forward pass


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("padded", [False, True])
def test_logits(name: str, padded: bool, calls: Calls) -> None:
    (stock, ours), given = decoders(name), tokens()
    if not padded:
        del given["attention_mask"]
    expected, found = stock(**given).logits, ours(**given).logits
    seen = given["attention_mask"].bool() if padded else slice(None)
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-4)
    assert len(calls.options) == 2
    assert any(call["softcap"] for call in calls.options) == (name == "gemma2")
    assert any(call["sinks"] is not None for call in calls.options) == (name == "gpt_oss")


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, calls: Calls) -> None:
    stock, ours = encoders(name)
    if not ours._can_set_attn_implementation():
        assert not VERSION_5
        pytest.skip(f"the {name} of transformers 4.57 chooses among attentions of its own")
    given = {"pixel_values": torch.randn(2, 3, 32, 32)} if name == "vit" else tokens(False)
    expected, found = stock(**given).last_hidden_state, ours(**given).last_hidden_state
    seen = slice(None) if name != "bert" else given["attention_mask"].bool()
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-4)
    assert len(calls.options) == (3 if name == "bart" else 2)


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_gradients(name: str) -> None:
    stock, ours = decoders(name) if name in DECODERS else encoders(name)
    given, gradients = tokens(False), []
    seen = given["attention_mask"].bool()
    for model in (stock, ours):
        model.train()
        model(**given)[0][seen].square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for path, expected in gradients[0].items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            gradients[1][path], expected, rtol=1e-3, atol=2e-4 * scale + 1e-6
        )


def test_bfloat16() -> None:
    stock, ours = decoders("llama")
    given = tokens()
    truth = stock(**given).logits
    errors = [
        (m.bfloat16()(**given).logits.float() - truth)[given["attention_mask"].bool()].abs().mean()
        for m in (stock, ours)
    ]
    assert errors[1] <= 1.2 * errors[0]


def test_dropout_in_training() -> None:
    _, ours = pair(
        lambda: transformers.LlamaConfig(**GROUPED, attention_dropout=0.4),
        transformers.AutoModelForCausalLM,
    )
    given = tokens()
    assert torch.equal(ours(**given).logits, ours(**given).logits)
    ours.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(ours(**given).logits)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_mask_of_the_users() -> None:
    """Four dimensions and floats: transformers passes it through."""
    stock, ours = decoders("llama")
    ids = tokens()["input_ids"]
    mask = torch.randn(2, 1, 13, 13).masked_fill(torch.rand(2, 1, 13, 13) < 0.3, -1e9)
    expected, found = (m(input_ids=ids, attention_mask=mask).logits for m in (stock, ours))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_packed_sequences(calls: Calls) -> None:
    """Bounds instead of a mask, as collators without padding give."""
    stock, ours = decoders("llama")
    ids = torch.randint(3, 99, (1, 11))
    bounds = torch.tensor([0, 4, 11], dtype=torch.int32)
    positions = torch.cat([torch.arange(4), torch.arange(7)])[None]
    expected = torch.cat([stock(input_ids=part).logits for part in ids.split([4, 7], 1)], 1)
    found = ours(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    layer = Layer()
    q, k, v = torch.randn(1, 4, 11, 8), torch.randn(1, 2, 11, 8), torch.randn(1, 2, 11, 8)
    out, _ = integration.attention_forward(
        layer, q, k, v, None, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=7,
        max_length_k=7,
    )  # fmt: skip
    parts = [
        integration.attention_forward(layer, *(x[:, :, s] for x in (q, k, v)), None)[0]
        for s in (slice(0, 4), slice(4, 11))
    ]
    torch.testing.assert_close(out, torch.cat(parts, 1))


@pytest.mark.parametrize("is_causal", [True, False])
def test_packed_sequences_in_a_window(is_causal: bool) -> None:
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    bounds = torch.tensor([0, 9], dtype=torch.int32)
    out, _ = integration.attention_forward(
        Layer(), q, k, v, None, is_causal=is_causal, sliding_window=3, cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds, max_length_q=9, max_length_k=9,
    )  # fmt: skip
    distance = torch.arange(9)[:, None] - torch.arange(9)
    seen = (distance < 3) & (distance >= 0 if is_causal else distance > -3)
    scores = (q @ k.mT / 8**0.5).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(out.transpose(1, 2), scores.softmax(-1) @ v)


class Layer(nn.Module):
    is_causal = True


def test_position_bias() -> None:
    q, k, v = (torch.randn(2, 4, 6, 8) for _ in range(3))
    position_bias, mask = torch.randn(1, 4, 6, 6), torch.rand(2, 1, 6, 6) < 0.7
    mask[..., 0] = True
    out, weights = integration.attention_forward(
        Layer(), q, k, v, mask, position_bias=position_bias, scaling=0.5
    )
    scores = (q @ k.mT * 0.5 + position_bias).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(out.transpose(1, 2), scores.softmax(-1) @ v)
    assert weights is None


def test_weights_are_refused() -> None:
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="eager"):
        integration.attention_forward(Layer(), q, q, q, None, output_attentions=True)


def test_compile() -> None:
    _, ours = decoders("llama")
    ids = tokens()["input_ids"]
    expected = ours(input_ids=ids, use_cache=False).logits
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    found = compiled(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize("cache", ["dynamic", "static", "beams"])
@pytest.mark.parametrize("name", DECODERS)
def test_generate(name: str, cache: str, calls: Calls) -> None:
    (stock, ours), given = decoders(name), tokens()
    options = {"num_beams": 2} if cache == "beams" else {"cache_implementation": cache}
    expected, found = (m.generate(**given, **GREEDY, **options) for m in (stock, ours))
    assert torch.equal(found, expected)
    assert len(calls.options) == 2 * 12


@pytest.mark.parametrize("name", DECODERS)
def test_int8_cache(name: str, calls: Calls) -> None:
    """The logits of every step are those of a cache that was rounded to int8."""
    (_, ours), given = decoders(name), tokens()
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    found = ours.generate(**given, **options, past_key_values=integration.Int8Cache())
    assert sum(call.get("k_scale") is not None for call in calls.options) == 2 * 11
    rounded = ours.generate(**given, **options, past_key_values=Rounded())
    assert torch.equal(found.sequences, rounded.sequences)
    for ours_step, expected in zip(found.logits, rounded.logits, strict=True):
        torch.testing.assert_close(ours_step, expected, rtol=1e-2, atol=2e-2)


class Rounded(transformers.DynamicCache):
    """Rounds what it is given after the prompt's attention has seen it, in plain torch."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        fresh = len(self.layers) <= layer_idx
        kept = super().update(*map(rounded, (key_states, value_states)), layer_idx)
        return (key_states, value_states) if fresh else kept


def rounded(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127) * scale


def test_int8_cache_grows_crops_and_reorders() -> None:
    integration.register()
    cache, truth = integration.Int8Cache(), Rounded()
    x = torch.randn(3, 2, 600, 8)
    for part in x.split([2, 1, 300, 297], 2):
        for c in (cache, truth):
            c.update(part, 2 * part, 0)
    assert cache.get_seq_length() == 600

    def same() -> None:
        for ours, theirs in (("keys", "keys"), ("values", "values")):
            rows, expected = getattr(cache.layers[0], ours), getattr(truth.layers[0], theirs)
            scale = rows._weft_scale.transpose(1, 2)[..., None]
            torch.testing.assert_close(rows * scale, expected)

    same()
    for change in (
        lambda c: c.crop(-100),
        lambda c: c.reorder_cache(torch.tensor([2, 0, 0])),
        lambda c: c.batch_repeat_interleave(2),
        lambda c: c.batch_select_indices(torch.tensor([5, 1])),
    ):
        for c in (cache, truth):
            change(c)
        same()
    assert cache.get_seq_length() == 500
    cache.reset()
    assert cache.get_seq_length() == 0
    cache.update(x, x, 0)
    assert cache.get_seq_length() == 600


def test_int8_keys_need_their_scales() -> None:
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="scales"):
        integration.attention_forward(Layer(), q, q.to(torch.int8), q.to(torch.int8), None)


# ----------------------------------------------------------------------------- continuous batching

PROMPTS = [7, 9, 3, 22]  # lengths: shorter and longer than a window, a page, a step


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """4.57 counts the memory of GPUs only."""
    if not VERSION_5:
        from transformers.generation.continuous_batching.cache import PagedAttentionMemoryHandler

        monkeypatch.setattr(
            PagedAttentionMemoryHandler, "get_available_memory", staticmethod(lambda _=1.0: 2**30)
        )
    yield


def generate_batch(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Pages of 8 rows, and steps of 16 tokens, so that prompts come in several."""
    sizes = {"num_blocks": 64, "max_batch_tokens": 16}
    config = transformers.GenerationConfig(**GREEDY, pad_token_id=0, eos_token_id=-1)
    options = {}
    if VERSION_5:
        options["continuous_batching_config"] = transformers.ContinuousBatchingConfig(
            **sizes, page_size=8, max_memory_percent=0.2
        )
    else:
        for key, value in (sizes | {"block_size": 8}).items():
            setattr(config, key, value)
    results = model.generate_batch(prompts, generation_config=config, progress_bar=False, **options)
    in_order = sorted(results.items(), key=lambda item: int(item[0].split("_")[-1]))
    return [result.generated_tokens for _, result in in_order]


@pytest.mark.parametrize("name", DECODERS)
def test_continuous_batching(
    name: str, memory: None, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, ours = decoders(name)
    prompts = [torch.randint(3, 99, (n,)).tolist() for n in PROMPTS]
    slides = name not in ("llama", "qwen3")
    if name == "gemma2" and not VERSION_5:
        pytest.skip("the paged attention of transformers 4.57 has no softcap to compare with")
    if slides and not VERSION_5:  # where 4.57 reads another ring than it wrote, with its own code
        stock.config._attn_implementation = "eager_paged"
        expected = generate_batch(stock, prompts)
    else:
        expected = [
            stock.generate(torch.tensor([p]), **GREEDY, eos_token_id=None)[0, len(p) :].tolist()
            for p in prompts
        ]
    if not slides:  # nothing is gathered
        monkeypatch.setattr(
            transformers.generation.continuous_batching.PagedAttentionCache, "update", None
        )
    before = ours.config._attn_implementation
    with integration.continuous_batching(ours):
        found = generate_batch(ours, prompts)
    assert ours.config._attn_implementation == before == "weft"
    assert found == expected
    paged = [call for call in calls.options if call.get("block_table") is not None]
    if VERSION_5 or name not in ("mistral",):
        assert paged
    assert all(call["cu_seqlens_q"] is not None for call in calls.options)


def test_an_unknown_cache_is_refused() -> None:
    q = torch.randn(1, 2, 3, 4)
    layer = Layer()
    layer.layer_idx = 0
    with pytest.raises(NotImplementedError, match="does not know object"):
        integration.attention_forward(layer, q, q, q, None, cache=object())
