"""Loading changes nothing in silence, and exports what `from_pretrained` loads again."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    FunnelConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.bert.modeling_bert import BertLayer

from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.model.isolation import isolation_fault
from stream_pretrain.model.kinds import refuse_other_head
from stream_pretrain.model.loading import export_of, load_model
from stream_pretrain.model.packed_attention import PACKED_ATTENTION, one_document
from stream_pretrain.model.positions import first_position
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.model.tokenizer import load_tokenizer
from tests.model.families import CAUSAL, MADE_CAUSAL, MASKED, causal_masks, packed_rows, tiny_model
from tests.model.saved_models import CLM, MLM, load, saved, tiny_tokenizer, without

SHARED_MODELS = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"
HALVES = (torch.float16, torch.bfloat16)


def shared_model(name: str) -> str:
    if not (SHARED_MODELS / name).exists():
        pytest.skip(f"needs the test model {name} next to the checkout")
    return str(SHARED_MODELS / name)


# What loads


def test_a_new_head_is_announced_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(without(saved(tmp_path), "cls."))
    assert not caplog.records, "of transformers"
    (note,) = [note for note in loaded.notes if "head" in note]
    assert "has no masked language-model head: a new one is trained (cls.predictions.bias" in note


@pytest.mark.parametrize(("first", "notes"), [("w0", 0), ("another", 1)])
def test_the_tokenizer_of_another_model_is_noted(tmp_path: Path, first: str, notes: int) -> None:
    own = tiny_tokenizer()
    own.save_pretrained(saved(tmp_path / "model"))
    vocabulary = dict(sorted(own.get_vocab().items(), key=lambda item: item[1]))
    if first == "another":
        words = list(vocabulary)
        vocabulary = {word: place for place, word in enumerate([*words[:4], *reversed(words[4:])])}
    given = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")), pad_token="[PAD]", mask_token="[MASK]"
    )
    given.save_pretrained(tmp_path / "given")
    config = ModelConfig(path=str(tmp_path / "model"), tokenizer=str(tmp_path / "given"))
    found = [note for note in load_model(config, MLM, given, 24, 0).notes if "tokenizer" in note]
    note = (
        f"{tmp_path}/given is not the tokenizer of {tmp_path}/model: 96 of the 100 tokens have other ids or none, so most "
        "embeddings begin as those of other tokens"
    )
    assert found == [note] * notes


@pytest.mark.parametrize("family", MASKED)
def test_an_encoder_saved_without_its_head_is_loaded_as_it_is_and_gets_a_new_head(tmp_path: Path, family: str) -> None:
    encoder = tiny_model(family).base_model
    encoder.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert any("has no masked language-model head: a new one is trained" in note for note in loaded.notes)
    for found, expected in zip(loaded.model.base_model.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_a_new_head_depends_on_the_seed_alone_and_the_global_random_state_is_left(tmp_path: Path) -> None:
    path = without(saved(tmp_path), "cls.")
    state = torch.get_rng_state()
    first = load(path, seed=7).model.cls.predictions.transform.dense.weight
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(load(path, seed=7).model.cls.predictions.transform.dense.weight, first)
    assert not torch.equal(load(path, seed=8).model.cls.predictions.transform.dense.weight, first)


def test_weights_from_scratch_are_a_function_of_the_seed(tmp_path: Path) -> None:
    saved(tmp_path)
    config = ModelConfig(config=str(tmp_path / "config.json"), tokenizer="given")
    state = torch.get_rng_state()
    models = [load_model(config, MLM, tiny_tokenizer(), 24, seed).model for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (model.bert.encoder.layer[0].output.dense.weight for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, tiny_model("bert").bert.encoder.layer[0].output.dense.weight)


def test_a_model_from_scratch_has_the_special_tokens_of_its_tokenizer(tmp_path: Path) -> None:
    saved(tmp_path, "modernbert")
    config = ModelConfig(config=str(tmp_path), tokenizer="given", resize_embeddings=True)
    tokenizer = tiny_tokenizer(130)
    tokenizer.pad_token = "w100"
    loaded = load_model(config, MLM, tokenizer, 24, 0)
    assert loaded.model.config.pad_token_id == 104
    assert loaded.model.get_input_embeddings().padding_idx == 104
    assert loaded.model.get_input_embeddings().num_embeddings == 192


@pytest.mark.parametrize(("tokens", "size"), [(30, 64), (100, 128), (130, 192)])
def test_from_scratch_the_embedding_takes_the_size_of_the_tokenizer_where_it_may_be_resized(
    tmp_path: Path, tokens: int, size: int
) -> None:
    scratch = ModelConfig(config=saved(tmp_path / "config", "modernbert"), tokenizer="given", resize_embeddings=True)
    loaded = load_model(scratch, MLM, tiny_tokenizer(tokens), 24, 0)
    assert loaded.model.get_input_embeddings().num_embeddings == loaded.model.config.vocab_size == size
    assert any("the embedding" in note and f"{size} tokens" in note for note in loaded.notes)
    begun_earlier = load_model(scratch, MLM, tiny_tokenizer(tokens), 24, 0, vocabulary=256)
    assert begun_earlier.model.get_input_embeddings().num_embeddings == 256

    loaded.model.save_pretrained(tmp_path / "weights")
    again = load_model(replace(scratch, init_from=str(tmp_path / "weights")), MLM, tiny_tokenizer(tokens), 24, 0)
    assert torch.equal(again.model.get_input_embeddings().weight, loaded.model.get_input_embeddings().weight)


def test_without_leave_to_resize_an_embedding_that_is_larger_than_the_tokenizer_stays(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for config in (ModelConfig(config=path, tokenizer="given"), ModelConfig(path=path, resize_embeddings=True)):
        assert load_model(config, MLM, tiny_tokenizer(30), 24, 0).model.config.vocab_size == 100


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL])
def test_embedding_and_head_grow_to_a_multiple_of_64_when_allowed(tmp_path: Path, family: str) -> None:
    config = ModelConfig(path=saved(tmp_path, family), resize_embeddings=True)
    objective, document = CLM if family in CAUSAL else MLM, torch.arange(10, 30)[None]
    loaded = load_model(config, objective, tiny_tokenizer(130), 24, 0)
    model, before = loaded.model.eval(), tiny_model(family)
    assert model.get_input_embeddings().num_embeddings == 192
    assert model.config.vocab_size == 192
    assert "the embedding grows from 100 to 192 tokens: the new rows are untrained" in loaded.notes
    with torch.no_grad():
        logits = model(document, **one_document(model, 20)).logits
        assert logits.shape == (1, 20, 192)
        torch.testing.assert_close(logits[..., :100], before(document).logits, atol=1e-4, rtol=1e-4)

    model.save_pretrained(tmp_path / "grown")
    again = load_model(replace(config, init_from=str(tmp_path / "grown")), objective, tiny_tokenizer(130), 24, 0)
    for found, expected in zip(again.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_a_model_that_was_trained_for_next_tokens_sees_what_follows_again_when_it_is_trained_on_masks(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path, is_decoder=True))
    assert "bert becomes bidirectional: is_decoder is unset and exported" in loaded.notes
    assert isolation_fault(PretrainingModel(loaded.model), 24, True, None) is not None, "a token sees those that follow it"
    settings = export_of(loaded, loaded.model).settings
    assert settings.is_decoder is False


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_padding_token_beyond_the_positions_says_nothing_of_where_they_begin(family: str) -> None:
    model = tiny_model(family, pad_token_id=99)
    assert first_position(model) == 0


def test_attention_dropout_is_off_while_training_and_kept_in_exports(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path))
    assert loaded.model.bert.encoder.layer[0].attention.self.dropout.p == 0.0
    assert loaded.model.bert.encoder.layer[0].output.dropout.p == 0.1
    assert any(note.startswith("attention_probs_dropout_prob is 0 while training") for note in loaded.notes)
    settings = export_of(loaded, loaded.model).settings
    assert settings.attention_probs_dropout_prob == 0.1
    assert settings.use_cache is True
    assert loaded.model.config.attention_probs_dropout_prob == 0.0


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "BertLMHeadModel"),
        ("roberta", "RobertaForCausalLM"),
        ("xlm-roberta", "XLMRobertaForCausalLM"),
        ("camembert", "CamembertForCausalLM"),
        ("electra", "ElectraForCausalLM"),
    ],
)
def test_an_encoder_trained_for_next_tokens_becomes_causal(tmp_path: Path, family: str, kind: str) -> None:
    loaded = load(saved(tmp_path, family), CLM)  # the probe refuses a model whose tokens see those that follow
    assert type(loaded.model).__name__ == kind
    assert f"{family} becomes causal: is_decoder is set and exported" in loaded.notes
    assert export_of(loaded, loaded.model).settings.is_decoder is True
    assert isolation_fault(PretrainingModel(loaded.model), 24, causal=True, mask_token_id=None) is None


@pytest.mark.parametrize("family", MADE_CAUSAL)
def test_an_encoder_without_a_causal_form_is_causal_while_it_trains_and_bidirectional_again_on_masks(
    tmp_path: Path, family: str
) -> None:
    loaded = load(saved(tmp_path, family), CLM)
    assert f"{family} becomes causal while it trains: its exports are when given a causal attention_mask" in loaded.notes
    assert isolation_fault(PretrainingModel(loaded.model), 24, causal=True, mask_token_id=None) is None

    export = export_of(loaded, loaded.model)
    state, settings = export.weights, export.settings
    settings.save_pretrained(tmp_path / "export")
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "export" / "model.safetensors")
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path / "export")
    document = torch.arange(10, 30)[None]
    with torch.no_grad():
        expected = loaded.model.eval()(document, **one_document(loaded.model, 20)).logits
        found = exported.eval()(document, attention_mask=causal_masks(exported, 20)).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    again = load(str(tmp_path / "export"))
    fault = isolation_fault(PretrainingModel(again.model), 24, causal=True, mask_token_id=None)
    assert str(fault).startswith("tokens see later tokens")


def test_an_encoder_whose_attention_cannot_be_made_causal_is_refused_for_next_tokens(tmp_path: Path) -> None:
    reason = r"^MPNetForMaskedLM cannot be trained on next tokens \(tokens see later tokens, by .*\): choose an"
    with pytest.raises(ModelError, match=reason):
        load(saved(tmp_path, "mpnet"), CLM)


@pytest.mark.parametrize("objective", [MLM, CLM])
def test_a_model_of_neither_kind_is_refused(tmp_path: Path, objective: bool) -> None:
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(t5\) is no masked and no causal language model: choose another model$"):
        load(str(tmp_path), objective)
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is not a language model \(vit\): choose another model$"):
        load(str(tmp_path), objective)


def test_gradient_checkpointing_is_switched_on(tmp_path: Path) -> None:
    model = load(saved(tmp_path), gradient_checkpointing=True).model
    assert all(layer.gradient_checkpointing for layer in model.bert.encoder.layer)


def test_old_gamma_and_beta_names_are_loaded() -> None:
    path = shared_model("bert-tiny-splade")
    stored = load_file(Path(path) / "model.safetensors")
    model = load_model(ModelConfig(path=path), MLM, load_tokenizer(ModelConfig(path=path)), 512, 0).model
    assert torch.equal(model.bert.embeddings.LayerNorm.weight, stored["bert.embeddings.LayerNorm.gamma"])
    assert torch.equal(model.bert.embeddings.LayerNorm.bias, stored["bert.embeddings.LayerNorm.beta"])


@pytest.mark.parametrize(("family", "dtype"), [*zip([*MASKED, *CAUSAL], itertools.cycle(HALVES))])
def test_a_model_stored_in_half_precision_becomes_float32(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    stored = tiny_model(family).to(dtype)
    stored.save_pretrained(tmp_path)
    objective = CLM if family in CAUSAL else MLM
    pretrained = load_model(ModelConfig(path=str(tmp_path)), objective, tiny_tokenizer(), 24, 0)
    scratch = load_model(ModelConfig(config=str(tmp_path), tokenizer="given"), objective, tiny_tokenizer(), 24, 0)
    for loaded in (pretrained, scratch):
        assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
        assert {buffer.dtype for buffer in loaded.model.buffers()} <= {torch.float32, torch.int64}
        assert export_of(loaded, loaded.model).settings.dtype == torch.float32
    for found, expected in zip(pretrained.model.parameters(), stored.parameters(), strict=True):
        assert torch.equal(found, expected.float())


def test_a_real_encoder_stored_as_float16_gets_float32_weights_and_a_new_head() -> None:
    path = shared_model("minilm-l6-encoder-fp16")
    loaded = load_model(ModelConfig(path=path), MLM, load_tokenizer(ModelConfig(path=path)), 128, 0)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert any("has no masked language-model head" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("family", "unused"),
    [
        ("bert", "cls.predictions.bias"),
        ("roberta", "lm_head.bias"),
        ("albert", "predictions.bias"),
        ("nomic_bert", "cls.predictions.bias"),
        ("mpnet", "lm_head.bias"),
    ],
)
def test_the_spare_bias_of_an_untied_head_is_left_out_of_training_and_exported(
    tmp_path: Path, family: str, unused: str
) -> None:
    loaded = load(saved(tmp_path, family, tie_word_embeddings=False))
    assert f"not trained, as the loss does not depend on them: {unused}" in loaded.notes
    assert [name for name, weight in loaded.model.named_parameters() if not weight.requires_grad] == [unused]
    assert unused in export_of(loaded, loaded.model).weights


def test_a_model_whose_layers_take_turns_is_refused_rather_than_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = BertLayer.forward

    def first_layer_only(self: BertLayer, hidden_states: Tensor, *rest: Any, **options: Any) -> Tensor:
        chosen = self.attention.self.layer_idx == 0
        return forward(self, hidden_states, *rest, **options) if chosen else hidden_states

    path = saved(tmp_path)
    monkeypatch.setattr(BertLayer, "forward", first_layer_only)
    with pytest.raises(
        ModelError, match=r"for every token, for example bert\.encoder\.layer\.1\.attention\.self\.query\.weight"
    ):
        load(path)


# --init-from


def test_init_from_takes_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    other = tiny_model("bert")
    with torch.no_grad():
        other.bert.embeddings.LayerNorm.bias.fill_(0.5)
    other.save_pretrained(tmp_path / "checkpoint")
    loaded = load(path, init_from=str(tmp_path / "checkpoint"))
    assert torch.all(loaded.model.bert.embeddings.LayerNorm.bias == 0.5)


@pytest.mark.parametrize("settings", [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"intermediate_size": 64}])
def test_init_from_another_shape_is_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    path = saved(tmp_path / "model")
    checkpoint = saved(tmp_path / "checkpoint", **settings)
    with pytest.raises(ModelError, match="checkpoint"):
        load(path, init_from=checkpoint)


# Export


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL])
def test_a_model_is_trained_as_a_whole_and_exported_with_nothing_missing_and_equal_logits(tmp_path: Path, family: str) -> None:
    loaded = load(saved(tmp_path / "model", family), CLM if family in CAUSAL else MLM)
    assert all(weight.requires_grad and weight.grad is None for weight in loaded.model.parameters())
    assert not any(note.startswith("not trained") for note in loaded.notes)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.add_(0.01)
    trained = PretrainingModel(loaded.model)

    export = export_of(loaded, trained)
    state, settings = export.weights, export.settings
    (tmp_path / "export").mkdir()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "export" / "model.safetensors")
    settings.save_pretrained(tmp_path / "export")
    auto = AutoModelForCausalLM if family in CAUSAL else AutoModelForMaskedLM
    again, info = auto.from_pretrained(tmp_path / "export", output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.architectures == [type(loaded.model).__name__]
    assert again.config._attn_implementation != PACKED_ATTENTION
    input_ids, _, _ = packed_rows()
    every_row = {"cu_seq_lens_q": torch.tensor([0, 24, 48], dtype=torch.int32)}
    with torch.no_grad():
        expected = loaded.model.eval()(input_ids, **every_row).logits
        torch.testing.assert_close(again.eval()(input_ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_tied_weights_are_exported_once(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path))
    state = export_of(loaded, loaded.model).weights
    assert "bert.embeddings.word_embeddings.weight" in state
    assert "cls.predictions.decoder.weight" not in state
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_a_family_with_several_base_models_is_known_by_each() -> None:
    refuse_other_head("x", FunnelConfig(architectures=["FunnelBaseModel"]))
    refuse_other_head("x", FunnelConfig(architectures=["FunnelForMaskedLM"]))
    with pytest.raises(ModelError, match="x is a FunnelForSequenceClassification, which is no language model"):
        refuse_other_head("x", FunnelConfig(architectures=["FunnelForSequenceClassification"]))
