"""Models and tokenizers that cannot be trained, or not as asked, are refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from stream_pretrain.config import ModelConfig
from stream_pretrain.errors import ModelError
from stream_pretrain.model.loading import load_model, sized_model
from stream_pretrain.model.tokenizer import load_tokenizer
from tests.corpora import write_tiny_bert, write_tiny_bert_with_weights
from tests.model.families import CAUSAL
from tests.model.saved_models import CLM, MLM, load, saved, tiny_tokenizer, without


def test_a_tokenizer_without_a_mask_token_is_refused_for_mlm(tmp_path: Path) -> None:
    config = ModelConfig(path=saved(tmp_path))
    with pytest.raises(ModelError, match="no mask token"):
        load_model(config, MLM, tiny_tokenizer(mask_token=None), 24, 0)


@pytest.mark.parametrize(("family", "longest"), [("bert", 80), ("roberta", 78), ("gpt2", 80), ("opt", 80)])
def test_rows_beyond_the_positions_of_the_model_are_refused(tmp_path: Path, family: str, longest: int) -> None:
    path = saved(tmp_path, family)
    objective = CLM if family in CAUSAL else MLM
    load(path, objective, sequence_length=longest)
    with pytest.raises(ModelError, match=f"--sequence-length {longest + 1} must be at most {longest}$"):
        load(path, objective, sequence_length=longest + 1)


@pytest.mark.parametrize(("family", "longest"), [("bert", 80), ("roberta", 78), ("gpt2", 80)])
def test_rows_beyond_the_positions_are_refused_by_the_configuration_alone(tmp_path: Path, family: str, longest: int) -> None:
    config = ModelConfig(path=saved(tmp_path, family))
    assert sized_model(config, family == "gpt2", longest)[1] > 0
    with pytest.raises(ModelError, match=rf"positions for {longest} tokens.*: --sequence-length 81 must be at most {longest}$"):
        sized_model(config, family == "gpt2", 81)


@pytest.mark.parametrize("family", ["modernbert", "llama"])
def test_rotary_models_have_no_last_position(tmp_path: Path, family: str) -> None:
    load(saved(tmp_path, family), CLM if family in CAUSAL else MLM, sequence_length=4096)


def test_a_tokenizer_larger_than_the_embedding_is_refused_and_the_option_is_named(tmp_path: Path) -> None:
    config = ModelConfig(path=saved(tmp_path))
    with pytest.raises(ModelError, match=r"the tokenizer has 130 tokens, .* only 100: .* --model\.resize-embeddings"):
        load_model(config, MLM, tiny_tokenizer(130), 24, 0)


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(ModelError, match=f"^no such file or folder: {path}$"):
        load(path)
    with pytest.raises(ModelError, match=f"^no such file or folder: {path}$"):
        load_tokenizer(ModelConfig(path=path))


def test_a_folder_that_is_spelt_alike_is_suggested_if_it_has_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_bert(tmp_path / "models" / "bert-tiny")
    (tmp_path / "models" / "bare").mkdir()
    for name, said in {
        "./models/bert-tny": "no such file or folder: ./models/bert-tny; did you mean models/bert-tiny?",
        "./model/bert_tiny": "no such file or folder: ./model/bert_tiny; did you mean models/bert-tiny?",
        "./models/bar": "no such file or folder: ./models/bar",
        "my/models/bert": "no such file or folder: my/models/bert",
        "bad name!": "no such file or folder: bad name!",
        "org/--bad": "no such file or folder: org/--bad",
        "q" * 300: f"no such file or folder: {'q' * 300}",
    }.items():
        for load_it in (load, lambda path: load_tokenizer(ModelConfig(path=path))):
            with pytest.raises(ModelError) as error:
                load_it(name)
            assert str(error.value) == said


def test_a_folder_without_weights_names_the_way_to_train_from_scratch(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    with pytest.raises(ModelError) as error:
        load_model(config, MLM, load_tokenizer(config), 32, 0)
    assert str(error.value) == (
        f"no weights in {tmp_path}: give another model, or --model.config {tmp_path} to train from scratch"
    )


def test_the_folder_of_a_run_is_answered_by_the_model_in_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}")
    with pytest.raises(ModelError, match=f"^{out} is the folder of a run, without a model$"):
        load(str(out))
    for step in (5, 10):
        saved(out / "checkpoints" / f"step-{step:08d}")
    with pytest.raises(ModelError, match=f"is the folder of a run: give the model in it, {out}/checkpoints/step-00000010$"):
        load_tokenizer(ModelConfig(path=str(out)))
    saved(out / "model")
    with pytest.raises(ModelError, match=f"is the folder of a run: give the model in it, {out}/model$"):
        load(saved(tmp_path / "model"), init_from=str(out))


def test_the_folder_of_checkpoints_is_answered_by_the_last_of_them(tmp_path: Path) -> None:
    for step in (5, 10):
        saved(tmp_path / f"step-{step:08d}")
    said = f"^{tmp_path} has checkpoints in it: give the model in it, {tmp_path}/step-00000010$"
    for load_it in (load, lambda path: load_tokenizer(ModelConfig(path=path))):
        with pytest.raises(ModelError, match=said):
            load_it(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://huggingface.co/org/bert", "https://huggingface.co/org/bert is a page of the Hub: give org/bert"),
        ("https://huggingface.co/bert/tree/main", "https://huggingface.co/bert/tree/main is a page of the Hub: give bert"),
        (
            "org/bert@v1",
            "no such file or folder: org/bert@v1; a revision is given apart: org/bert with --model.revision v1",
        ),
    ],
)
def test_a_page_and_a_revision_of_the_hub_are_answered_by_how_to_give_them(name: str, said: str) -> None:
    with pytest.raises(ModelError) as error:
        load_tokenizer(ModelConfig(path=name))
    assert str(error.value) == said


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_causal_model_that_is_to_be_trained_on_masks_is_answered_by_the_objective(tmp_path: Path, family: str) -> None:
    path = saved(tmp_path, family)
    said = (
        rf"^{path} is a causal language model \({family}\), which --objective.name mlm cannot train: give --objective.name clm"
    )
    for tokenizer in (tiny_tokenizer(), tiny_tokenizer(mask_token=None)):
        for config in (ModelConfig(path=path), ModelConfig(config=path, tokenizer="given")):
            with pytest.raises(ModelError, match=said):
                load_model(config, MLM, tokenizer, 24, 0)


def test_a_causal_model_is_refused_for_masks_by_its_configuration_alone(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is a causal language model \(llama\), which --objective\.name mlm cannot train: give"
    ):
        sized_model(ModelConfig(path=saved(tmp_path, "llama")), MLM)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize(
    ("padding", "said"),
    [
        (
            "w86",
            "the padding token has id 90, after which the positions of .* start, but there are only 80: give a --model.tok",
        ),
        (
            "w72",
            "the padding token has id 76, after which the positions of .* start, but there are only 80: give a --model.tok",
        ),
        (
            "w60",
            "has positions for 15 tokens, since they start after 64, the id of the padding token: --sequence-length 24 must",
        ),
        (None, "the positions of .* start after the id of the padding token, and the tokenizer has none: give a --model.tok"),
    ],
)
def test_a_padding_token_that_leaves_no_positions_is_named(tmp_path: Path, family: str, padding: str | None, said: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = padding
    with pytest.raises(ModelError, match=said):
        load_model(ModelConfig(config=saved(tmp_path, family), tokenizer="given"), MLM, tokenizer, 24, 0)


def test_a_padding_token_beyond_the_positions_is_named_where_the_model_has_it(tmp_path: Path) -> None:
    path = saved(tmp_path, "roberta")
    settings = AutoConfig.from_pretrained(path)
    settings.pad_token_id = 90
    settings.save_pretrained(path)
    with pytest.raises(ModelError, match=r"^the padding token has id 90, after which the positions of"):
        load(path)


def test_a_special_token_that_a_model_must_have_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(
        ModelError, match=r"^the tokenizer has no pad token, which a nomic_bert needs: give another --model\.tok"
    ):
        load_model(ModelConfig(config=saved(tmp_path, "nomic_bert"), tokenizer="given"), MLM, tokenizer, 24, 0)


def test_a_folder_without_a_tokenizer_is_named_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^no tokenizer in .*--model\.tokenizer$"):
        load_tokenizer(ModelConfig(path=saved(tmp_path / "model")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"^no tokenizer in .*; name another$"):
        load_tokenizer(ModelConfig(path="bert", tokenizer=str(tmp_path / "empty")))


def changed(folder: Path, **settings: object) -> Path:
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **settings}))
    return folder


def test_a_folder_that_is_no_model_that_can_be_trained_says_so_and_names_no_option_of_the_tokenizer(tmp_path: Path) -> None:
    def bert(name: str) -> Path:
        return write_tiny_bert_with_weights(tmp_path / name)

    for name in ("empty", "adapter", "gguf", "sentences", "json", "list"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    (tmp_path / "gguf" / "m.Q4_K_M.gguf").touch()
    bert("sentences/0_Transformer")
    (tmp_path / "json" / "config.json").write_text("{")
    (tmp_path / "list" / "config.json").write_text("[]")
    (bert("tokenizer alone") / "config.json").unlink()
    (bert("pointer") / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    changed(bert("quantized"), quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    changed(bert("wider"), hidden_size=32)
    changed(bert("function"), hidden_act="swoosh")
    changed(bert("text"), hidden_size="16")
    empty = "is no model: it has no config.json"
    expected = {
        "empty": f"$/empty {empty}",
        "tokenizer alone": f"$/tokenizer alone {empty}",
        "sentences": f"$/sentences {empty}; did you mean $/sentences/0_Transformer?",
        "adapter": "$/adapter is no model: it has an adapter (adapter_config.json), to be merged into its base model first",
        "gguf": "$/gguf is no model: it has weights for llama.cpp (.gguf), which cannot be trained: give the model that",
        "json": "$/json/config.json is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2",
        "list": "$/list/config.json is no JSON object: give another model",
        "pointer": "$/pointer/model.safetensors is a pointer of Git LFS: get the file with `git lfs pull`",
        "quantized": "$/quantized is quantized, and cannot be trained: give the model that it was made from",
        "wider": "$/wider does not match its configuration: weights have other shapes",
        "function": "$/function cannot be loaded as a masked language model: transformers does not know 'swoosh'",
        "text": "no model configuration in $/text: Validation error for field 'hidden_size'",
    }
    for name, said in expected.items():
        config = ModelConfig(path=str(tmp_path / name))
        with pytest.raises(ModelError) as error:
            load_model(config, MLM, load_tokenizer(config), 24, 0)
        assert str(error.value).startswith(said.replace("$", str(tmp_path))), name
        assert "--model.tokenizer" not in str(error.value)


def test_a_file_beside_a_model_that_cannot_be_read_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    (tmp_path / "notes").touch()
    opened = Path.open

    def forbidden(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "notes":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ModelError, match="model type `nothing`"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_a_tokenizer_that_transformers_makes_up_for_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer in .*name one with --model\.tokenizer"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_weights_that_are_cut_short_are_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path)
    weights = Path(path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded as a masked language model"):
        load(path)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    tokenizer, weights = f"{write_tiny_bert(tmp_path / 'tokenizer')}/tokenizer.json", f"{folder}/model.safetensors"
    for load_it in (
        lambda: load_tokenizer(ModelConfig(path=tokenizer)),
        lambda: load_tokenizer(ModelConfig(path=folder, tokenizer=tokenizer)),
        lambda: load(folder, init_from=weights),
    ):
        with pytest.raises(ModelError, match=r"^\S+ is a file: give the folder of the model or tokenizer that it belongs to$"):
            load_it()


def test_a_pickle_that_is_cut_short_is_refused_in_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path)
    Path(path, "model.safetensors").unlink()
    Path(path, "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"cannot be loaded as a masked language model: EOFError$"):
        load(path)


def test_weights_to_begin_with_that_are_nowhere_are_refused_as_a_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"^nowhere is neither a folder here nor in the cache of this machine, and HF_HUB_OFFLINE"
    ):
        load(path, init_from="nowhere")


def test_a_tokenizer_without_a_fast_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"[PAD]": 0, "a": 1, "<unk>": 2}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    (tmp_path / "merges.txt").write_text("#version\n")
    with pytest.raises(ModelError, match=r"\(CTRLTokenizer\) has no fast version"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_missing_encoder_weights_are_an_error_not_random(tmp_path: Path) -> None:
    path = without(saved(tmp_path), "bert.encoder.layer.1.output.dense")
    with pytest.raises(
        ModelError, match=r"lacks weights of BertForMaskedLM, for example bert\.encoder\.layer\.1\.output\.dense"
    ):
        load(path)


def test_half_a_head_is_an_error_not_random(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"for example cls\.predictions\.transform\.dense\.bias"):
        load(without(saved(tmp_path), "cls.predictions.transform.dense"))
