"""Every file in configs/ runs, and so does every combination of packing and objective: in one process, on tiny models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.corpora import VOCABULARY, documents, word_tokenizer, write_shard, write_tiny_bert
from tests.integration.jobs import lines, tiny_options
from tests.training.runs import run_to_end, write_tiny_modernbert

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = ("--sequence-length=48", "--global-batch-size=8", "--micro-batch-size=4", "--lanes=8")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i, style in enumerate(["plain", "zst"]):
        write_shard(folder / f"s{i}", documents(200, seed=i), style)
    return folder


def write_bert_weights(folder: Path) -> Path:
    write_tiny_bert(folder)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def write_roberta_weights(folder: Path) -> Path:
    """A RoBERTa with a byte-level tokenizer of its own, learnt from the corpus."""
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(documents(100), vocab_size=400, special_tokens=special, show_progress=False)
    trained._tokenizer.post_processor = word_tokenizer().backend_tokenizer.post_processor
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        mask_token="<mask>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def write_tiny_llama(folder: Path) -> Path:
    LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32,
    ).save_pretrained(folder)  # fmt: skip
    word_tokenizer().save_pretrained(folder)
    return folder


def write_tiny_gpt2(folder: Path) -> Path:
    GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=64).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def metrics(out: Path) -> list[dict[str, float]]:
    return lines(out / "metrics.jsonl")


CONTINUED: dict[str, Callable[[Path], Path]] = {
    "bert_domain_adaptation": write_bert_weights,
    "bert_replay": write_bert_weights,
    "roberta_whole_word": write_roberta_weights,
}
FROM_SCRATCH: dict[str, Callable[[Path], Path]] = {
    "demo": write_tiny_bert,
    "modernbert_from_scratch": write_tiny_modernbert,
    "small_causal": write_tiny_llama,
}
FIRST_RATES = {
    "bert_domain_adaptation": 1e-4 / 1000,
    "bert_replay": 1e-4 / 1000,
    "roberta_whole_word": 1e-4 / 1000,
    "demo": 1e-3 / 40,
    "modernbert_from_scratch": 8e-4 / 3000,
    "small_causal": 2e-3 / 1000,
}
"""Learning rates of the first step: all recipes warm up, also where they continue from a model."""


def test_every_recipe_says_in_its_first_line_what_it_is_for() -> None:
    recipes = sorted(CONFIGS.glob("*.yaml"))
    assert {path.stem for path in recipes} == {*CONTINUED, *FROM_SCRATCH}
    for path in recipes:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert first.startswith("# ")
        assert len(first) > 40


@pytest.mark.parametrize("name", [*CONTINUED, *FROM_SCRATCH])
def test_the_recipe_trains_on_a_small_scale(name: str, corpus: Path, tmp_path: Path) -> None:
    if name in CONTINUED:
        model = [f"--model={CONTINUED[name](tmp_path / 'model')}"]
    else:
        folder = FROM_SCRATCH[name](tmp_path / "model")
        model = [f"--model.config={folder}", f"--model.tokenizer={folder}"]
    out = tmp_path / "out"
    corpora = [f"--dataset={corpus}"]
    if name == "bert_replay":
        corpora = [
            f'--data.sources=[{{"name": "field", "dataset": "{corpus}"}}, {{"name": "replay", "dataset": "{corpus}"}}]',
            '--data.weight-schedule=[{"from_step": 2, "weights": {"replay": 0}}]',
        ]
    sizes = ("--max-steps=3", "--sequence-length=32", "--global-batch-size=8", "--micro-batch-size=4", "--log-every=1")
    evaluation = ("--eval-every=3", "--eval.documents=5", "--data.heldout-fraction=0.1")
    recipe = f"--config={CONFIGS / name}.yaml"
    run_to_end([recipe, *corpora, f"--output-dir={out}", *model, *sizes, *evaluation, "--run.wandb=disabled"])
    first, *trained_steps = metrics(out)
    assert [line["step"] for line in (first, *trained_steps)] == [0, 1, 2, 3]
    assert trained_steps[0]["train/lr"] == pytest.approx(FIRST_RATES[name])
    assert all(math.isfinite(line["train/loss"]) and line["train/grad_norm"] > 0 for line in trained_steps)
    assert math.isfinite(trained_steps[-1]["eval/loss"])
    kind = AutoModelForCausalLM if name == "small_causal" else AutoModelForMaskedLM
    trained, info = kind.from_pretrained(out / "model", output_loading_info=True)
    assert isinstance(trained, PreTrainedModel)
    assert not info["missing_keys"]


@pytest.mark.parametrize("packing", ["none", "concat", "best_fit"])
@pytest.mark.parametrize("selection", ["token", "whole_word", "span"])
def test_every_packing_goes_with_every_selection_of_masks(
    packing: str, selection: str, corpus: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    masks = (f"--data.packing={packing}", f"--objective.selection={selection}", "--objective.final-mask-rate=0.15")
    run_to_end(tiny_options(corpus, model, out, *SIZES, "--max-steps=2", "--sequence-length=64", *masks))
    assert_starts_undecided(metrics(out))
    segments = [line["train/segments_per_row"] for line in metrics(out)]
    assert segments == [1, 1] if packing == "none" else max(segments) > 1


@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_gpt2, write_tiny_bert, write_tiny_modernbert])
@pytest.mark.parametrize("packing", ["none", "concat", "best_fit"])
def test_next_tokens_are_predicted_by_decoders_and_by_encoders_made_causal(
    write: Callable[[Path], Path], packing: str, corpus: Path, tmp_path: Path
) -> None:
    model, out = write(tmp_path / "model"), tmp_path / "out"
    run_to_end(tiny_options(corpus, model, out, *SIZES, "--max-steps=2", "--objective.name=clm", f"--data.packing={packing}"))
    assert_starts_undecided(metrics(out))


def assert_starts_undecided(lines: list[dict[str, float]]) -> None:
    """Every token is as likely as any other to a model that has learnt nothing."""
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["train/loss"] == pytest.approx(math.log(len(VOCABULARY)), abs=0.15)
        assert line["train/grad_norm"] > 0


def test_a_bert_with_an_untied_head_trains_saves_and_resumes(corpus: Path, tmp_path: Path) -> None:
    folder, out = write_tiny_bert(tmp_path / "model"), tmp_path / "out"
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=False)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    options = [
        *(f"--dataset={corpus}", f"--model={folder}", f"--output-dir={out}", *SIZES, "--log-every=1", "--run.wandb=disabled")
    ]
    said = run_to_end([*options, "--max-steps=2"])
    assert "not trained, as the loss does not depend on them: cls.predictions.bias" in said
    run_to_end([*options, "--max-steps=4"])
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]
    before = load_file(folder / "model.safetensors")
    after = load_file(out / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name].equal(after[name])] == ["cls.predictions.bias"]


def test_a_stable_checkpoint_goes_on_in_a_new_run_that_warms_up_and_decays_again(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    rate = ("--train.learning-rate=0.01", "--train.schedule=wsd", "--train.decay-fraction=0.5")
    options = (*SIZES, *rate, "--data.heldout-fraction=0.1", "--eval-every=4", "--eval.documents=20")
    run_to_end(tiny_options(corpus, model, first, *options, "--max-steps=8", "--save-every=4"))
    stable = first / "checkpoints" / "step-00000004"
    begun = ("--max-steps=6", f"--init-from={stable}", "--train.warmup-steps=2")
    run_to_end(tiny_options(corpus, model, second, *options, *begun))
    before, after = metrics(first), metrics(second)
    decay = [0.01 * (1 - math.sqrt(share)) for share in (0.25, 0.5, 0.75)]
    assert [line["train/lr"] for line in before[1:]] == pytest.approx([0.01] * 5 + decay)
    assert after[0]["eval/loss"] == before[4]["eval/loss"] < before[0]["eval/loss"]
    third = [0.01 * (1 - math.sqrt(share)) for share in (1 / 3, 2 / 3)]
    assert [line["train/lr"] for line in after[1:]] == pytest.approx([0.005, 0.01, 0.01, 0.01, *third])


def test_a_run_from_the_weights_of_another_begins_at_step_0_and_warms_up_again(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    evaluation = ("--data.heldout-fraction=0.1", "--eval-every=6", "--eval.documents=20")
    options = (*SIZES, *evaluation, "--max-steps=6", "--train.learning-rate=0.01")
    run_to_end(tiny_options(corpus, model, first, *options))
    run_to_end(tiny_options(corpus, model, second, *options, f"--init-from={first / 'model'}", "--train.warmup-steps=4"))
    before, after = metrics(first), metrics(second)
    assert after[0]["step"] == 0
    assert after[0]["eval/loss"] == before[6]["eval/loss"] != before[0]["eval/loss"]
    assert [line["train/lr"] for line in after[1:]] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])
    assert after[1]["train/documents"] == before[1]["train/documents"]
