"""The probe that every model passes before it trains."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stream_pretrain.errors import ModelError
from stream_pretrain.model.isolation import choose_attention, isolation_fault
from stream_pretrain.model.packed_attention import PACKED_ATTENTION
from stream_pretrain.model.pretraining import PretrainingModel
from tests.model.families import CAUSAL, MASKED, SEGMENTS, packed_rows, tiny_model


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL])
def test_families_that_dispatch_their_attention_get_the_packed_one(family: str) -> None:
    model = tiny_model(family)
    assert choose_attention(model, sequence_length=64, causal=family in CAUSAL, mask_token_id=3) == ()
    assert model.config._attn_implementation == PACKED_ATTENTION
    assert isolation_fault(PretrainingModel(model), 64, family in CAUSAL, None) is None


def test_mpnet_ignores_it_and_gets_a_block_diagonal_mask_that_is_exact() -> None:
    model = tiny_model("mpnet")
    (note,) = choose_attention(model, sequence_length=24, causal=False, mask_token_id=None)
    assert note.startswith("MPNetForMaskedLM: documents are isolated by a block-diagonal mask")

    input_ids, position_ids, cu_seq_lens = packed_rows()
    with torch.no_grad():
        packed = PretrainingModel(model).logits(input_ids, position_ids, cu_seq_lens, torch.arange(48))
        documents = [part for ids, lengths in zip(input_ids, SEGMENTS, strict=True) for part in ids.split(lengths)]
        alone = torch.cat([model(document[None]).logits[0] for document in documents])
    torch.testing.assert_close(packed, alone, atol=5e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # DeBERTa of transformers 5.17
@pytest.mark.parametrize(
    ("family", "words"),
    [
        (
            "deberta",
            "DebertaForMaskedLM cannot isolate the documents of a row (the model ignores transformers' attention"
            " interface; with a block-diagonal mask: RuntimeError: The size of tensor a (32) must match the size of tensor b"
            " (24) at non-singleton dimension 3): choose another model",
        ),
        (
            "deberta-v2",
            "DebertaV2ForMaskedLM cannot isolate the documents of a row (the model ignores transformers' attention"
            " interface; with a block-diagonal mask: RuntimeError: The size of tensor a (32) must match the size of tensor b"
            " (24) at non-singleton dimension 3): choose another model",
        ),
        (
            "mobilebert",
            "MobileBertForMaskedLM cannot isolate the documents of a row (a packed document differs from the document alone"
            " by #; with a block-diagonal mask: a packed document differs from the document alone by #): choose another model",
        ),
    ],
)
def test_a_model_that_cannot_isolate_documents_is_refused_with_the_reason(
    family: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError) as refused:
        choose_attention(tiny_model(family), sequence_length=24, causal=False, mask_token_id=None)
    assert re.sub(r"\d\.\de[+-]\d\d", "#", str(refused.value)) == words
    assert not caplog.records, "of transformers"


def test_mobilebert_is_exact_without_its_embedding_of_neighbours() -> None:
    assert choose_attention(tiny_model("mobilebert", trigram_input=False), 24, causal=False, mask_token_id=None) == ()


def test_a_head_that_does_not_take_the_output_of_its_encoder_is_refused() -> None:
    model = PretrainingModel(tiny_model("bert"))
    model.head.detach()
    input_ids, position_ids, cu_seq_lens = packed_rows()
    with pytest.raises(ModelError, match=r"^the head of BertForMaskedLM did not take the output of its encoder$"):
        model.logits(input_ids, position_ids, cu_seq_lens, torch.arange(48))


def test_a_model_whose_logits_are_no_numbers_is_refused_for_that() -> None:
    model = tiny_model("bert")
    model.bert.embeddings.LayerNorm.weight.data[3] = torch.nan
    with pytest.raises(ModelError, match=r"^BertForMaskedLM: its logits are not finite numbers, as of damaged weights: choose"):
        choose_attention(model, 24, causal=False, mask_token_id=None)


def test_a_faint_leak_between_documents_is_caught() -> None:
    model = tiny_model("bert", PACKED_ATTENTION)

    def leak(_module: nn.Module, _inputs: Any, hidden: Tensor) -> Tensor:
        return hidden + 1e-4 * hidden.mean(dim=1, keepdim=True)

    model.bert.embeddings.register_forward_hook(leak)
    assert "documents leak into each other" in str(isolation_fault(PretrainingModel(model), 24, False, None))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="documents leak into each other"):
        choose_attention(model, 24, causal=False, mask_token_id=None)


def test_a_leak_through_the_number_of_masks_is_caught() -> None:
    model = tiny_model("bert", PACKED_ATTENTION)

    def scale_by_masks(_module: nn.Module, inputs: Any, keywords: dict[str, Tensor], hidden: Tensor) -> Tensor:
        masks = (keywords["input_ids"] == 99).float().mean(dim=1)[:, None, None]
        return torch.where(masks > 0.08, hidden * (1 + masks), hidden)

    model.bert.embeddings.register_forward_hook(scale_by_masks, with_kwargs=True)
    assert isolation_fault(PretrainingModel(model), 24, causal=False, mask_token_id=99) is not None


def test_a_window_that_attention_is_not_told_of_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mistral", sliding_window=30)
    layer = type(model.model.layers[0].self_attn)
    forward = layer.forward

    def forget_window(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        window, self.config.sliding_window = self.config.sliding_window, None
        try:
            return forward(self, *args, **kwargs)
        finally:
            self.config.sliding_window = window

    monkeypatch.setattr(layer, "forward", forget_window)
    with pytest.raises(ModelError, match="a packed document differs from the document alone"):
        choose_attention(model, sequence_length=64, causal=True, mask_token_id=None)


def test_next_token_prediction_with_attention_to_later_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="tokens see later tokens"):
        choose_attention(tiny_model("bert"), 24, causal=True, mask_token_id=None)


def test_the_probe_leaves_mode_weights_and_random_state_as_they_were() -> None:
    model = tiny_model("roberta").train()
    weights = [weight.clone() for weight in model.parameters()]
    state = torch.get_rng_state()
    choose_attention(model, 24, causal=False, mask_token_id=None)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert not model.roberta._forward_hooks
