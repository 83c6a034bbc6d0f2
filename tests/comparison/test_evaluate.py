"""`evaluate`: what it says of a model is what the model gives, document by document."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from stream_pretrain import cli
from stream_pretrain.comparison.bootstrap import paired_difference
from stream_pretrain.comparison.compare import _means
from stream_pretrain.comparison.losses import DocumentLosses, document_losses
from stream_pretrain.comparison.probe import FOLDS, read_labelled
from stream_pretrain.comparison.pseudo_likelihood import CHARACTERS, Likelihoods, beginnings, first_token
from stream_pretrain.comparison.table import lines_of
from stream_pretrain.config import Config, ModelConfig, ObjectiveConfig
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.rows.encoder import Encoder
from stream_pretrain.data.rows.objective import objective_of
from stream_pretrain.data.rows.packing import Packing
from stream_pretrain.model.kinds import is_causal
from stream_pretrain.model.loading import export_of, load_model
from stream_pretrain.model.pretraining import PretrainingModel
from stream_pretrain.training.evaluation.packed_documents import packed_documents
from tests.corpora import VOCABULARY, documents, json_lines, word_tokenizer
from tests.training.runs import run_here, write_tiny_modernbert

SIZES = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def masked_model(folder: Path, seed: int, positions: int = 64) -> str:
    torch.manual_seed(seed)
    BertForMaskedLM(BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=positions)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def causal_model(folder: Path, seed: int, *, framed: bool = True) -> str:
    """framed: whether the tokenizer puts [CLS] in front of a text."""
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48, max_position_embeddings=64)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    if not framed:
        file = folder / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    return str(folder)


def corpus(path: Path, texts: Sequence[str]) -> str:
    path.write_bytes(json_lines(texts))
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return masked_model(folder / "base", 1), masked_model(folder / "other", 2)


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code = cli.main(["evaluate", *arguments, "--json"])
    out, said = capsys.readouterr()
    assert code == 0, said
    return json.loads(out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["evaluate", *arguments])
    return code, capsys.readouterr().err.splitlines()[-1]


def test_a_model_differs_from_itself_by_nothing_and_another_by_an_interval(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, other = models
    data = corpus(tmp_path / "a.jsonl", documents(40))
    result = evaluated(capsys, base, other, "--dataset", data, "--sequence-length=64", "--objective.mask-rate=0.3")
    first, second = result["models"]
    [difference] = result["differences"]
    assert (first["model"], second["model"], result["documents"]) == (base, other, 40)
    assert (difference["base"], difference["model"]) == (base, other)
    assert first["labels"] == second["labels"]
    assert difference["loss"]["difference"] == pytest.approx(second["loss"] - first["loss"])
    assert difference["loss"]["low"] < difference["loss"]["difference"] < difference["loss"]["high"]
    lengths = first["by_length"]
    assert sum(part["documents"] for part in lengths.values()) == first["documents"]
    weighted = sum(part["loss"] * part["labels"] for part in lengths.values())
    assert weighted / first["labels"] == pytest.approx(first["loss"])


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_the_loss_of_a_document_is_that_of_its_segments_alone(models: tuple[str, str], packing: Packing) -> None:
    texts = [*documents(7), "", "bara bast"]
    config = Config(objective=ObjectiveConfig(mask_rate=0.4))
    loaded = load_model(ModelConfig(path=models[0]), False, word_tokenizer(), 64, seed=0)
    objective = objective_of(config, loaded.tokenizer)
    encoder = objective.framed(Encoder.of(loaded.tokenizer))
    packed = packed_documents(texts, encoder, objective, RowLayout(1, 8, 64, packing, 0))
    assert packed is not None
    model = PretrainingModel(loaded.model).eval()
    found = document_losses(model, packed, texts, batch_rows=3, pad=encoder.pad, report=lambda _: None)
    alone, rows, labelled = AutoModelForMaskedLM.from_pretrained(models[0]).eval(), packed.rows, packed.labelled
    loss, labels = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
    for row, start, length, document in zip(
        rows.segment_row, rows.segment_start, rows.segment_length, packed.texts[rows.segment_document], strict=True
    ):
        here = labelled.labels[row] >= 0
        places, values = labelled.label_positions[row][here], labelled.labels[row][here]
        inside = (places >= start) & (places < start + length)
        with torch.no_grad():
            logits = alone(torch.from_numpy(labelled.input_ids[row, start : start + length].astype(np.int64))[None]).logits[0]
        answers = torch.from_numpy(values[inside].astype(np.int64))
        loss[document] += F.cross_entropy(logits[torch.from_numpy(places[inside] - start)], answers, reduction="sum").item()
        labels[document] += inside.sum()
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.tokens.tolist() == [len(word_tokenizer()(text, add_special_tokens=False)["input_ids"]) for text in texts]


def test_the_table_has_the_figures_of_the_json() -> None:
    def model(name: str, loss: float, probe: list[float]) -> dict[str, Any]:
        means = {"loss": loss, "accuracy": 0.25, "documents": 1200, "labels": 9}
        return {
            "model": name, **means, "bits_per_byte": 1.5, "likelihood_bytes": 990, "by_source": {},
            "by_length": {"up to 128 tokens": means, "129 to 512 tokens": {**means, "loss": None}},
            "probe": {"accuracy": sum(probe) / 2, "folds": probe},
        }  # fmt: skip

    interval = {"difference": -0.5, "low": -0.75, "high": 0.125}
    result = {
        "objective": "mlm", "documents": 1200, "likelihood_sample": {"documents": 32, "bytes": 1000},
        "models": [model("base", 2.5, [0.5, 0.75]), model("runs/first/model", 2.0, [1.0, 0.5])],
        "differences": [
            {"model": "runs/first/model", "base": "base", "loss": interval, "accuracy": None, "bits_per_byte": interval}
        ],
    }  # fmt: skip
    assert list(lines_of(result)) == [
        "model               loss  accuracy  bits per byte                    probe",
        "base              2.5000    0.2500         1.5000  0.6250 (0.500 to 0.750)",
        "runs/first/model  2.0000    0.2500         1.5000  0.7500 (0.500 to 1.000)",
        "",
        "1,200 documents; bits per byte of the beginnings of 32 of them, 1,000 bytes",
        "base does not predict 10 of these bytes, and they do not count: those of first tokens",
        "runs/first/model does not predict 10 of these bytes, and they do not count: those of first tokens",
        "",
        "loss by length               base  runs/first/model",
        "up to 128 tokens   2.5000 (1,200)    2.0000 (1,200)",
        "129 to 512 tokens            none              none",
        "",
        "runs/first/model minus base (95 % interval over documents):",
        "  loss -0.5000 [-0.7500, +0.1250]",
        "  bits per byte -0.5000 [-0.7500, +0.1250]",
    ]


def test_sources_are_told_apart(models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"short": ["bara bast ball bamp " * 4] * 6, "long": documents(5, seed=3)}
    sources = [{"name": name, "dataset": corpus(tmp_path / f"{name}.jsonl", text)} for name, text in texts.items()]
    data = [f"--data.sources={json.dumps(sources)}", "--sequence-length=64", "--objective.mask-rate=0.5"]
    found = evaluated(capsys, models[0], *data)["models"][0]
    assert {name: part["documents"] for name, part in found["by_source"].items()} == {"short": 6, "long": 5}
    weighted = sum(part["loss"] * part["labels"] for part in found["by_source"].values())
    assert weighted / found["labels"] == pytest.approx(found["loss"])


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_the_loss_is_that_which_a_run_has_logged(objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = corpus(tmp_path / "a.jsonl", documents(60)), str(write_tiny_modernbert(tmp_path / "model"))
    held = corpus(tmp_path / "held.jsonl", documents(20, seed=5))
    out = tmp_path / "out"
    finished = run_here(
        [f"--dataset={data}", f"--model.config={model}", f"--model.tokenizer={model}", f"--output-dir={out}", "--max-steps=3",
         "--global-batch-size=8", "--sequence-length=64", "--eval-every=3", f"--eval.dataset={held}", "--wandb=disabled",
         f"--objective.name={objective}"]
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    settings = out / "model/config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "is_decoder": None}))  # as an earlier version left it
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    result = evaluated(capsys, str(out / "model"), "--dataset", held, "--sequence-length=64")
    assert result["models"][0]["loss"] == pytest.approx(logged["eval/loss"], rel=1e-5)
    assert result["models"][0]["accuracy"] == pytest.approx(logged["eval/accuracy"])
    assert result["objective"] == objective
    copy = shutil.copytree(out / "model", tmp_path / "copy")
    told = evaluated(capsys, str(copy), "--dataset", held, "--sequence-length=64")
    assert told["objective"] == "mlm", "nothing tells it otherwise"


def test_the_likelihood_of_a_masked_model_masks_one_token_at_a_time(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "doc bara stll 12"
    result = evaluated(capsys, models[0], "--dataset", corpus(tmp_path / "a.jsonl", [text]), "--sequence-length=32")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(models[0]).eval(), word_tokenizer()
    ids = torch.tensor(tokenizer(text)["input_ids"])
    nats = 0.0
    for place in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[place] = tokenizer.mask_token_id
        with torch.no_grad():
            nats += F.cross_entropy(model(masked[None]).logits[0, place : place + 1], ids[place : place + 1]).item()
    assert result["objective"] == "mlm"
    assert result["models"][0]["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert result["likelihood_sample"] == {"documents": 1, "bytes": len(text)}


def test_a_causal_model_has_a_perplexity_and_a_likelihood_of_each_token_after_those_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, text = causal_model(tmp_path / "model", 3), "doc bara stll 12"
    result = evaluated(capsys, path, "--dataset", corpus(tmp_path / "a.jsonl", [text]), "--sequence-length=32")
    found = result["models"][0]
    ids = torch.tensor(word_tokenizer()(text)["input_ids"])[None]
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(path).eval()(ids).logits[0]
    nats = F.cross_entropy(logits[:-2], ids[0, 1:-1], reduction="sum").item()  # what is framed: [CLS] in front of the text
    assert result["objective"] == "clm"
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert found["likelihood_bytes"] == len(text) == 16
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


@pytest.mark.parametrize("length", [32, 3])  # of 3: in parts, each with the last token of the one before it
def test_the_first_token_of_a_text_counts_neither_bits_nor_bytes_where_nothing_stands_in_front_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], length: int
) -> None:
    path, text = causal_model(tmp_path / "model", 3, framed=False), "doc bara stll 12"
    data = ["--dataset", corpus(tmp_path / "a.jsonl", [text]), f"--sequence-length={length}"]
    result = evaluated(capsys, path, *data)
    ids = torch.tensor(word_tokenizer()(text, add_special_tokens=False)["input_ids"])
    model, nats = LlamaForCausalLM.from_pretrained(path).eval(), 0.0
    for place in range(1, len(ids)):
        first = 0 if length == 32 else (place - 1) // 2 * 2
        with torch.no_grad():
            nats += F.cross_entropy(model(ids[None, first:place]).logits[0, -1:], ids[place : place + 1]).item()
    found = result["models"][0]
    assert result["likelihood_sample"] == {"documents": 1, "bytes": 16}
    assert found["likelihood_bytes"] == 13  # without "doc"
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / 13, rel=1e-5)
    assert cli.main(["evaluate", path, *data]) == 0
    assert f"{path} does not predict 3 of these bytes, and they do not count: those of first tokens" in capsys.readouterr().out


def test_the_bytes_of_a_character_are_not_divided_between_its_tokens() -> None:
    tokenizer = Tokenizer(tokenizer_models.BPE({one: at for at, one in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = Encoder.of(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert first_token(encoder, "語文") == (3, 3)
    assert first_token(encoder, "a語") == (1, 1)
    assert first_token(encoder, "語") == (3, 3)


def test_without_a_token_that_is_predicted_there_are_no_bits_per_byte_and_no_difference() -> None:
    nothing = Likelihoods(np.zeros(2), np.zeros(2, dtype=np.int64))
    assert nothing.bits_per_byte is None
    assert paired_difference((nothing.bits, nothing.bytes), (np.ones(2), np.ones(2))) is None


def test_a_loss_beyond_every_perplexity_has_none() -> None:
    counts = np.ones(1, dtype=np.int64)
    means = [_means(DocumentLosses(np.array([loss]), counts, counts, counts), causal=True) for loss in (2.0, 1e4)]
    assert [one["perplexity"] for one in means] == [pytest.approx(math.e**2), None]


def test_a_model_is_judged_by_the_objective_that_it_was_trained_on_or_refused(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked, causal = models[0], causal_model(tmp_path / "causal", 3)
    data = ["--dataset", corpus(tmp_path / "a.jsonl", documents(3)), "--sequence-length=64"]
    assert refused(capsys, masked, *data, "--objective.name=clm") == (
        1,
        f"error: {masked} is a masked language model (bert), which --objective.name clm cannot judge: "
        "give --objective.name mlm, or another model; if it is an encoder that was trained with clm, put is_decoder: true into "
        "its config.json",
    )
    assert refused(capsys, causal, *data, "--objective.name=mlm")[1] == (
        f"error: {causal} is a causal language model (llama), which --objective.name mlm cannot judge: "
        "give --objective.name clm, or another model"
    )
    assert refused(capsys, masked, causal, *data)[1] == (
        f"error: {causal} is a causal language model, {masked} a masked one: their losses are of different tasks; "
        "evaluate them separately"
    )
    decoder = tmp_path / "decoder"
    BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)).save_pretrained(decoder)
    assert is_causal(AutoConfig.from_pretrained(decoder))
    scratch = ModelConfig(config=str(write_tiny_modernbert(tmp_path / "modernbert")))
    loaded = load_model(scratch, True, word_tokenizer(), 64, seed=0)
    assert is_causal(export_of(loaded, loaded.model).settings), "an encoder that was trained on next tokens"


def test_a_model_of_another_task_is_refused_though_its_head_is_tied_to_the_embedding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", corpus(tmp_path / "a.jsonl", documents(3)), "--sequence-length=64"]
    sizes = {"vocab_size": len(VOCABULARY), "n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 2, "eos_token_id": 3}
    GPT2ForSequenceClassification(GPT2Config(**sizes)).save_pretrained(tmp_path / "classifier")
    assert refused(capsys, str(tmp_path / "classifier"), *data)[1] == (
        f"error: {tmp_path}/classifier is a GPT2ForSequenceClassification, which is no language model: choose another model"
    )
    BartConfig(architectures=["BartForConditionalGeneration"]).save_pretrained(tmp_path / "bart")
    assert refused(capsys, str(tmp_path / "bart"), *data)[1] == (
        f"error: {tmp_path}/bart is an encoder-decoder (bart), no masked and no causal language model: choose another model"
    )


def test_all_models_are_loaded_once_before_the_first_is_measured(
    models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = masked_model(tmp_path / "short", 1, positions=32)
    data = ["--dataset", corpus(tmp_path / "a.jsonl", documents(3)), "--sequence-length=64"]
    tokenizers, from_pretrained = list[str](), AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda name, **o: tokenizers.append(name) or from_pretrained(name, **o)
    )
    assert cli.main(["evaluate", *models, short, *data]) == 1
    said = capsys.readouterr().err
    assert f"error: {short} has positions for 32 tokens: --sequence-length 64 must be at most 32\n" in said
    assert "loss" not in said
    assert tokenizers == [*models, short]


def test_rows_without_room_for_a_label_and_a_loss_that_is_no_number_are_refused(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset", corpus(tmp_path / "a.jsonl", documents(3))]
    assert refused(capsys, models[0], *data, "--sequence-length=2") == (
        2,
        "error: --sequence-length 2 is too short for a label in a row: 2 positions are special tokens; give at least 4",
    )
    model = BertForMaskedLM.from_pretrained(masked_model(tmp_path / "broken", 1))
    model.bert.embeddings.position_embeddings.weight.data[50] = math.nan
    model.save_pretrained(tmp_path / "broken")
    assert refused(capsys, str(tmp_path / "broken"), *data, "--sequence-length=64")[1] == (
        f"error: {tmp_path}/broken: its loss is not a finite number: give another model"
    )


def test_a_source_without_a_label_is_shown_and_one_document_has_no_interval(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"short": ["bara"], "long": documents(1)}
    sources = [{"name": name, "dataset": corpus(tmp_path / f"{name}.jsonl", text)} for name, text in texts.items()]
    data = [f"--data.sources={json.dumps(sources)}", "--sequence-length=64", "--objective.mask-rate=0.2"]
    result = evaluated(capsys, *models, *data)
    none = {"loss": None, "accuracy": None, "documents": 0, "labels": 0}
    assert [model["by_source"]["short"] for model in result["models"]] == [none, none]
    [difference] = result["differences"]
    assert difference["loss"]["low"] is difference["loss"]["high"] is None
    assert cli.main(["evaluate", *models, *data]) == 0
    out = capsys.readouterr().out
    assert "\nshort" in out
    assert f"  loss {difference['loss']['difference']:+.4f}, of one document: no interval\n" in out


def test_a_copy_of_a_model_differs_by_exactly_nothing(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(models[0], tmp_path / "copy")
    data = ["--dataset", corpus(tmp_path / "a.jsonl", documents(4)), "--sequence-length=64", "--evaluate.likelihood-sample=2"]
    [difference] = evaluated(capsys, models[0], str(copy), *data)["differences"]
    assert [difference[name] for name in ("loss", "accuracy", "bits_per_byte")] == [
        {"difference": 0.0, "low": 0.0, "high": 0.0}
    ] * 3


def test_models_of_different_tokenizers_are_compared_by_byte_only(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = masked_model(tmp_path / "model", 4)
    tokenizer = json.loads((Path(path) / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (Path(path) / "tokenizer.json").write_text(json.dumps(tokenizer))
    data = corpus(tmp_path / "a.jsonl", documents(5))
    [difference] = evaluated(capsys, models[0], path, "--dataset", data, "--sequence-length=64")["differences"]
    assert "loss" not in difference
    assert difference["bits_per_byte"]["difference"] != 0
    assert cli.main(["evaluate", models[0], path, "--dataset", data, "--sequence-length=64"]) == 0
    assert "their tokenizers differ, and so do their labels: compare bits per byte" in capsys.readouterr().out


def test_a_probe_tells_classes_apart_that_the_features_hold(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    probe = tmp_path / "probe.jsonl"
    texts = [("ba " * (n % 5 + 1), "b") for n in range(20)] + [("9 " * (n % 5 + 1), "nine") for n in range(20)]
    probe.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts))
    data = corpus(tmp_path / "a.jsonl", documents(3))
    found = evaluated(capsys, models[0], "--dataset", data, "--sequence-length=64", f"--evaluate.probe={probe}")
    assert found["models"][0]["probe"] == {"accuracy": 1.0, "folds": [1.0] * FOLDS}
    probe.write_text('{"text": "a", "label": 1}\n{"text": "b"}\n')
    assert refused(capsys, models[0], "--dataset", data, f"--evaluate.probe={probe}") == (
        2, f'error: --evaluate.probe {probe}, line 2: a "label" is needed, a word or a number',
    )  # fmt: skip
    probe.write_text('\n{"text": "a", "label": "x"}\n\n' * 6 + '{"text": "a", "label": "y"}\n' * 2)
    assert refused(capsys, models[0], "--dataset", data, f"--evaluate.probe={probe}")[1] == (
        f"error: --evaluate.probe {probe}: at least two labels with 5 texts each are needed for 5 folds; 'y' has 2"
    )
    probe.write_text("")
    assert refused(capsys, models[0], "--dataset", data, f"--evaluate.probe={probe}")[1].endswith("; there is none")


def test_what_cannot_be_evaluated_is_refused_by_name(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = corpus(tmp_path / "a.jsonl", documents(3))
    assert refused(capsys, "--dataset", data) == (
        2, "error: evaluate needs models: give folders or Hub ids, such as bert-base-uncased runs/first/model",
    )  # fmt: skip
    assert refused(capsys, models[0], models[0], "--dataset", data)[1] == (
        f"error: {models[0]} is given twice: leave one of them out"
    )
    encoder = tmp_path / "encoder"
    BertModel(BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=64)).save_pretrained(encoder)
    word_tokenizer().save_pretrained(encoder)
    code, said = refused(capsys, str(encoder), "--dataset", data, "--sequence-length=64")
    no_head = f"error: {encoder} has no language-model head, and a new one is untrained: give a model that has one"
    assert (code, said) == (1, no_head)
    bare = tmp_path / "bare"
    BertForMaskedLM(BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=64)).save_pretrained(bare)
    code, said = refused(capsys, str(bare), "--dataset", data, "--sequence-length=64")
    assert code == 1
    assert said.startswith(f"error: no tokenizer in {bare}: ")
    assert said.endswith("; give a model with a tokenizer of its own")
    assert refused(capsys, models[0], "--dataset", corpus(tmp_path / "b.jsonl", []))[1] == (
        "error: no document of the dataset to evaluate on"
    )
    assert cli.main(["evaluate", models[0], str(tmp_path / "none"), "--dataset", data]) == 1
    assert "loss" not in capsys.readouterr().err  # of the first model, which is there
    assert refused(capsys, models[0])[1] == "error: --dataset is missing: give a Hub id, folder, glob or URL"


def test_lines_that_cannot_be_read_are_left_out_with_a_warning(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = json_lines(documents(3)).splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join([lines[0], b"{\n", lines[1], b"[]\n", lines[2]]))
    offset = len(lines[0])
    assert cli.main(["evaluate", models[0], "--dataset", str(tmp_path / "a.jsonl"), "--sequence-length=64", "--json"]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out)["documents"] == 3
    [warning] = [line for line in said.splitlines() if "left out" in line]
    assert f"left out, since it cannot be read: a.jsonl, offset {offset}: " in warning
    assert warning.endswith(" and 1 more")


@pytest.mark.parametrize(
    "arguments", [["evaluate", "bert-base-uncased", "--dataset=x"], ["ledger", "runs/first", "--ledger.export=x"]]
)
def test_a_command_that_is_no_run_is_refused_under_a_launcher(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.main(arguments) == 2
    [*_, said] = capsys.readouterr().err.splitlines()
    assert said == "error: only a run takes several processes: start this command without torchrun or accelerate launch"


def test_a_byte_order_mark_is_no_part_of_labelled_texts(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a", "label": label}) for label in ("x", "y") * 5]
    (tmp_path / "probe.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    assert read_labelled(tmp_path / "probe.jsonl").classes == ["x", "y"]


def test_an_interval_holds_the_difference_of_documents_that_all_differ_alike() -> None:
    labels = np.array([1.0, 2.0, 3.0, 4.0])
    assert paired_difference((labels * 3, labels), (labels * 2, labels)) == (1.0, 1.0, 1.0)
    noisy = np.random.default_rng(0).normal(0.5, 1.0, 400)
    found = paired_difference((noisy, np.ones(400)), (np.zeros(400), np.ones(400)))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high
    assert 0.15 < found.high - found.low < 0.25  # 2 x 1.96 / sqrt(400)


def test_texts_are_cut_at_a_space_where_there_is_one() -> None:
    assert beginnings(["short", "word " * 100, "x" * 500]) == ["short", ("word " * 80).rstrip(), "x" * CHARACTERS]


def test_a_probe_without_its_package_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stream_pretrain.comparison.probe.find_spec", lambda _: None)
    (tmp_path / "probe.jsonl").touch()
    said = refused(capsys, "no-model", "--dataset=x", f"--evaluate.probe={tmp_path / 'probe.jsonl'}")
    assert said == (2, "error: --evaluate.probe needs scikit-learn: pip install 'stream_pretrain[probe]'")
