"""What a start says of its tokenizer, and what it refuses when a run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, PreTrainedTokenizerFast

from stream_pretrain.data.rows import tokenizer_probe
from stream_pretrain.training.start import corpus as start_corpus
from tests.corpora import documents, word_tokenizer, write_shard, write_tiny_bert
from tests.integration.jobs import tiny_options
from tests.training.runs import run_here, run_to_end


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    write_shard(tmp_path / "s", documents(100), "plain")
    model = write_tiny_bert(tmp_path / "model")
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DRUG]"]})
    tokenizer.save_pretrained(model)
    (model / "config.json").write_text(json.dumps({**json.loads((model / "config.json").read_text()), "vocab_size": 128}))
    return tiny_options(tmp_path / "s.jsonl", model, tmp_path / "out", "--lanes=auto")


def test_a_run_goes_on_with_the_same_ids_alone(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments.append("--data.engine=tokenizers")
    began = run_to_end([*arguments, "--max-steps=1"])
    assert "special tokens in documents are read as text: [DRUG]; --data.special-tokens keep" in began
    trainer = json.loads((tmp_path / "out" / "checkpoints" / "step-00000001" / "trainer.json").read_text())
    assert trainer["engine"]["name"] == "tokenizers"

    monkeypatch.setattr(tokenizers, "__version__", "0.99.0")
    upgraded = run_to_end([*arguments, "--max-steps=2"])
    assert (
        f"began with tokenizers {trainer['engine']['version']}, and resumes with tokenizers 0.99.0: the ids are the same"
        in upgraded
    )

    monkeypatch.setattr(start_corpus, "probed", lambda *of: replace(tokenizer_probe.probed(*of), ids="others"))
    refused = run_here([*arguments, "--max-steps=3"])
    assert refused.returncode == 1
    assert "error: tokenizers 0.99.0 gives other ids than before: install tokenizers==0.99.0, or start" in refused.stderr
    assert (tmp_path / "out" / "checkpoints" / "step-00000002").exists()


def test_special_tokens_decide_the_rows_and_do_not_change_in_a_run(arguments: list[str], tmp_path: Path) -> None:
    kept = run_to_end([*arguments, "--max-steps=1", "--data.special-tokens=keep"])
    assert "special tokens in documents are tokens, never drawn as a random replacement: [DRUG]" in kept
    refused = run_here([*arguments, "--max-steps=2"])
    assert refused.returncode == 1
    assert "data.special-tokens" in refused.stderr


def test_a_tokenizer_that_drew_at_random_is_exported_as_it_came(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(100), "plain")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({t: i for i, t in enumerate(["<eos>", *alphabet, "ba"])}, [("b", "a")], dropout=0.5))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>").save_pretrained(tmp_path / "model")
    GPT2Config(vocab_size=258, n_embd=16, n_layer=1, n_head=2, n_positions=64).save_pretrained(tmp_path / "model")
    more = ("--objective.name=clm", "--max-steps=1")
    finished = run_to_end(tiny_options(tmp_path / "s.jsonl", tmp_path / "model", tmp_path / "out", *more))
    assert "dropout 0.5 is random and switched off" in finished
    exported = json.loads((tmp_path / "out" / "model" / "tokenizer.json").read_bytes())
    assert exported["model"]["dropout"] == 0.5
