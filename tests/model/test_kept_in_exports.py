"""An export has what its model came with: weights that are not trained, and files beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForPreTraining, BertModel, GPT2Config, GPT2LMHeadModel

from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.model.loading import LoadedModel, export_of, load_model
from tests.corpora import VOCABULARY, documents, word_tokenizer, write_shard
from tests.training.runs import run_to_end

SMALL = BertConfig(
    vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=64,
)  # fmt: skip


def loaded(folder: Path, **options: object) -> LoadedModel:
    config = replace(ModelConfig(path=str(folder)), **options)  # type: ignore[arg-type]
    return load_model(config, False, word_tokenizer(), 32, 0)


@pytest.mark.parametrize("kind", [BertForPreTraining, BertModel])
def test_weights_of_modules_that_are_not_trained_are_exported_as_they_were_stored(
    kind: type[BertForPreTraining | BertModel], tmp_path: Path
) -> None:
    kind(SMALL).half().save_pretrained(tmp_path / "model")
    model = loaded(tmp_path / "model")
    export = export_of(model, model.model)
    state, settings = export.weights, export.settings
    pooler = [f"bert.pooler.dense.{name}" for name in ("bias", "weight")]
    others = [f"cls.seq_relationship.{name}" for name in ("bias", "weight")] if kind is BertForPreTraining else []
    assert [name for name in state if "pooler" in name or "relationship" in name] == pooler + others
    assert model.notes[-1] == f"not trained, exported unchanged: {', '.join(pooler + others)}"
    assert {state[name].dtype for name in pooler + others} == {torch.float16}
    assert state["bert.embeddings.word_embeddings.weight"].dtype == torch.float32

    settings.save_pretrained(tmp_path / "export")
    save_file(state, tmp_path / "export" / "model.safetensors", {"format": "pt"})
    stored = load_file(tmp_path / "model" / "model.safetensors")
    again = AutoModel.from_pretrained(tmp_path / "export", dtype=torch.float32)
    name = "bert.pooler.dense.weight" if kind is BertForPreTraining else "pooler.dense.weight"
    assert torch.equal(again.pooler.dense.weight, stored[name].float())
    _, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not info["missing_keys"]

    begun = loaded(tmp_path / "model", path=None, config=str(tmp_path / "model"), init_from=str(tmp_path / "export"))
    state_of_begun = export_of(begun, begun.model).weights
    assert {name: tensor.tolist() for name, tensor in state_of_begun.items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }


def test_weights_that_the_configuration_leaves_out_are_named(tmp_path: Path) -> None:
    BertForPreTraining(SMALL).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 1}))
    model = loaded(tmp_path)
    assert model.notes[-1].startswith("not used, not exported: bert.encoder.layer.1.attention.output.LayerNorm.bias, ")
    assert model.notes[-1].endswith(" and 8 more")
    assert not any("layer.1." in name for name in export_of(model, model.model).weights)


def test_a_checkpoint_with_more_layers_is_still_no_beginning(tmp_path: Path) -> None:
    BertForPreTraining(SMALL).save_pretrained(tmp_path / "large")
    small = BertConfig(**{**SMALL.to_dict(), "num_hidden_layers": 1})
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match=r"does not match the model: 16 weights .* bert\.encoder\.layer\.1"):
        loaded(tmp_path, path=None, config=str(tmp_path / "small"), init_from=str(tmp_path / "large"))


def test_weights_in_a_pickle_that_are_not_trained_are_named(tmp_path: Path) -> None:
    model = BertForPreTraining(SMALL)
    SMALL.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert loaded(tmp_path).notes[-1].startswith("not used, not exported: bert.pooler.dense.bias, bert.pooler.dense.weight")


FILES = {
    "generation_config.json": '{"do_sample": true, "eos_token_id": [3, 0],\n "temperature": 0.6}',
    "LICENSE.txt": "do as you like",
    "NOTICE": "made by others",
    "special_tokens_map.json": '{"unk_token": "[UNK]"}',
    "chat_template.jinja": "{{ messages[0].content }}",
}


def test_files_are_exported_as_they_came_by_checkpoints_and_the_last_model_of_every_start(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(100), "plain")
    model = tmp_path / "model"
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=3, eos_token_id=3)
    ).save_pretrained(model)
    word_tokenizer().save_pretrained(model)
    for name, content in FILES.items():
        (model / name).write_text(content)
    (model / "README.md").write_text("what these weights are good for")
    tokenizer = (model / "tokenizer.json").read_bytes() + b"\n"
    (model / "tokenizer.json").write_bytes(tokenizer)
    sizes = ["--sequence-length=32", "--global-batch-size=4", "--micro-batch-size=4", "--run.wandb=disabled", "--save-every=1"]
    run = [f"--dataset={tmp_path}/s.jsonl", "--objective.name=clm", *sizes]

    first, begun = f"--output-dir={tmp_path / 'first'}", f"--output-dir={tmp_path / 'begun'}"
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000001"
    for arguments in (
        [*run, f"--model={model}", first, "--max-steps=1"],
        [*run, f"--model={model}", first, "--max-steps=2"],
        [
            *run,
            f"--model.config={checkpoint}",
            f"--model.tokenizer={checkpoint}",
            f"--init-from={checkpoint}",
            begun,
            "--max-steps=1",
        ],
    ):
        run_to_end(arguments)
    for folder in (
        checkpoint,
        checkpoint.with_name("step-00000002"),
        tmp_path / "first" / "model",
        tmp_path / "begun" / "model",
    ):
        assert {name: (folder / name).read_text() for name in FILES} == FILES
        assert (folder / "tokenizer.json").read_bytes() == tokenizer
        assert not (folder / "README.md").exists()


def test_a_run_goes_on_with_weights_that_are_not_trained(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(100), "plain")
    BertForPreTraining(SMALL).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    sizes = ["--sequence-length=32", "--global-batch-size=4", "--micro-batch-size=4", "--run.wandb=disabled"]
    run = [f"--dataset={tmp_path}/s.jsonl", f"--model={tmp_path}/model", *sizes, f"--output-dir={tmp_path / 'out'}"]
    for steps in (1, 2):
        finished = run_to_end([*run, f"--max-steps={steps}"])
        assert "not trained, exported unchanged: bert.pooler.dense.bias, bert.pooler.dense.weight, cls.seq" in finished
    came, exported = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "out/model"))
    for name in ("bert.pooler.dense.weight", "cls.seq_relationship.bias"):
        assert torch.equal(came[name], exported[name])


def test_weights_that_are_not_trained_need_not_be_finite(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(100), "plain")
    model = BertForPreTraining(SMALL)
    torch.nn.init.constant_(model.bert.pooler.dense.bias, float("nan"))
    model.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    sizes = ["--sequence-length=32", "--global-batch-size=4", "--micro-batch-size=4", "--run.wandb=disabled"]
    run = [f"--dataset={tmp_path}/s.jsonl", f"--model={tmp_path}/model", *sizes, f"--output-dir={tmp_path / 'out'}"]
    for steps in (1, 2):
        run_to_end([*run, f"--max-steps={steps}"])
    assert load_file(tmp_path / "out" / "model" / "model.safetensors")["bert.pooler.dense.bias"].isnan().all()


def test_a_run_goes_on_without_the_checkpoint_that_it_began_from(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", documents(100), "plain")
    BertForPreTraining(SMALL).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "LICENSE").write_text("do as you like")
    (tmp_path / "model").rename(tmp_path / "weights")
    SMALL.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    sizes = ["--sequence-length=32", "--global-batch-size=4", "--micro-batch-size=4", "--run.wandb=disabled"]
    model = [f"--model.config={tmp_path}/model", f"--model.tokenizer={tmp_path}/model", f"--init-from={tmp_path}/weights"]
    run = [f"--dataset={tmp_path}/s.jsonl", *model, *sizes]
    run_to_end([*run, f"--output-dir={tmp_path / 'whole'}", "--max-steps=2", "--train.schedule=constant"])
    for steps in (1, 2):
        run_to_end([*run, f"--output-dir={tmp_path / 'out'}", f"--max-steps={steps}", "--train.schedule=constant"])
        if steps == 1:
            (tmp_path / "weights").rename(tmp_path / "gone")
    assert (tmp_path / "out" / "model" / "LICENSE").read_text() == "do as you like"
    expected, found = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("whole", "out"))
    assert "bert.pooler.dense.bias" in found
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
