"""Texts become the ids that their tokenizer gives them, framed as its model expects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stream_pretrain.data.rows.clm import Clm
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.mlm import Mlm
from stream_pretrain.errors import ModelError
from tests.corpora import WORDS, documents, word_tokenizer


def loaded(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(*special: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet, "ba"])}, [("b", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def roberta_like() -> PreTrainedTokenizerFast:
    tokenizer = byte_level("<s>", "<pad>", "</s>", "<mask>")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return loaded(tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>")


def gpt2_like() -> PreTrainedTokenizerFast:
    return loaded(byte_level("<|endoftext|>"), bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def llama_like() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", "</s>", "▁", "▁ba", "a", *"bcdefghij", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return loaded(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"bert": word_tokenizer, "roberta": roberta_like, "gpt2": gpt2_like, "llama": llama_like}


@pytest.mark.parametrize(
    ("name", "objective", "prefix", "suffix", "document_end", "pad"),
    [
        ("bert", Mlm, (2,), (3,), (), 0),
        ("bert", Clm, (2,), (), (3,), 0),
        ("roberta", Mlm, (0,), (2,), (), 1),
        ("gpt2", Mlm, (), (), (), 0),
        ("gpt2", Clm, (), (), (0,), 0),
        ("llama", Mlm, (1,), (), (), 2),
        ("llama", Clm, (1,), (), (2,), 2),
    ],
)
def test_the_framing_of_a_segment_is_what_the_tokenizer_puts_around_a_text(
    name: str,
    objective: type[Mlm | Clm],
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    document_end: tuple[int, ...],
    pad: int,
) -> None:
    encoder = objective.framed(Encoder.of(TOKENIZERS[name]()))
    assert (encoder.prefix, encoder.suffix, encoder.document_end, encoder.pad) == (prefix, suffix, document_end, pad)


def test_padding_and_truncation_that_were_saved_with_a_tokenizer_are_no_framing() -> None:
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=8, pad_id=0, pad_token="[PAD]")
    tokenizer.backend_tokenizer.enable_truncation(max_length=8)
    encoder = Encoder.of(tokenizer)
    assert (encoder.prefix, encoder.suffix) == ((2,), (3,))
    ids, lengths = encoder.build().encode([" ".join(WORDS), WORDS[0]])
    assert lengths.tolist() == [len(WORDS), 1]
    assert len(ids) == len(WORDS) + 1


def test_a_tokenizer_that_makes_nothing_of_a_letter_is_refused() -> None:
    tokenizer = loaded(Tokenizer(models.WordPiece({"[CLS]": 0}, unk_token="[UNK]")))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "")
    with pytest.raises(ModelError, match="has neither a token for 'a' nor an unknown token"):
        Encoder.of(tokenizer)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_plain_tokenizer(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    texts = [*documents(50), "ba a", "", "ünïcödé \U0001f600", "b" * 1000, " \n"]
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids, lengths = Encoder.of(tokenizer).build().encode(texts)
    assert ids.tolist() == [i for one in expected for i in one]
    assert lengths.tolist() == [len(one) for one in expected]
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)


PIECES_OF_TEXT = st.one_of(
    st.text(max_size=5),
    st.text(st.characters(codec="ascii"), max_size=20),
    st.sampled_from(
        [*"eIΣσİßŒ中한각", "A\u0301", "\u0327\u0301", "ﬁ", "\u302e", "\u200b", "\x85", "\xa0", "\u2028", "[MASK]", "[mask]"]
    ),
)


@settings(max_examples=400)
@given(
    text=st.lists(PIECES_OF_TEXT, max_size=12).map("".join),
    options=st.fixed_dictionaries(
        {
            "clean_text": st.booleans(),
            "handle_chinese_chars": st.booleans(),
            "strip_accents": st.sampled_from([None, True, False]),
            "lowercase": st.booleans(),
        }
    ),
)
@example(text="\u302e\x06\U0001d171", options={"strip_accents": True})
def test_what_berts_normalizer_does_is_the_same_done_sooner(text: str, options: dict[str, bool | None]) -> None:
    ids = {token: i for i, token in enumerate(["[MASK]", *(f"<0x{byte:02X}>" for byte in range(256))])}
    plain = Tokenizer(models.BPE(ids, [], byte_fallback=True))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.normalizer = normalizers.BertNormalizer(**options)
    plain.encode_special_tokens = True
    tokenizer = Encoder.of(loaded(plain, mask_token="[MASK]", eos_token="[MASK]")).build()
    assert tokenizer.tokenizer.normalizer is None
    assert tokenizer.encode([text])[0].tolist() == plain.encode(text, add_special_tokens=False).ids


def test_added_tokens_are_found_before_the_text_is_normalized() -> None:
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.add_tokens([AddedToken("IL-6", normalized=False)])
    ids, _ = Encoder.of(tokenizer).build().encode(["IL-6 il-6"])
    assert ids.tolist()[0] == tokenizer.convert_tokens_to_ids("IL-6")
    assert ids.tolist().count(ids[0]) == 1


def test_nothing_is_encoded_to_nothing() -> None:
    ids, lengths = Encoder.of(word_tokenizer()).build().encode([])
    assert (ids.tolist(), lengths.tolist(), ids.dtype) == ([], [], np.int32)


@pytest.mark.parametrize(
    ("name", "text"),
    [("bert", "[MASK] [SEP]"), ("roberta", "<mask></s>"), ("gpt2", "<|endoftext|>"), ("llama", "<s></s> <s>a</s>")],
)
def test_special_token_strings_in_a_document_are_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    ids, _ = Encoder.of(tokenizer).build().encode([text])
    assert special & set(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert len(ids) > 1
    assert not special & set(ids.tolist())
