"""The stream as a library: loops of others, each of which continues exactly where its state was saved."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import stream_pretrain
from stream_pretrain import DataConfig, SourceConfig, StreamPretrainError, TokenStream, prepare
from tests.corpora import documents, json_lines, word_tokenizer
from tests.library.models import SIZES, bert


def stream_of(corpus: str | DataConfig, **options: Any) -> TokenStream:
    usual = {"sequence_length": 64, "lanes": 4, "workers": 0, "global_batch_size": 8, "micro_batch_size": 4}
    return TokenStream(corpus, word_tokenizer(), **{**usual, **options})


def taken(stream: TokenStream, count: int) -> list[dict[str, torch.Tensor]]:
    stream.is_prepared = True  # no model sees them
    batches = iter(stream)
    return [next(batches) for _ in range(count)]


def same(one: Sequence[dict[str, torch.Tensor]], other: Sequence[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(one, other, strict=True)
    )


# --- The loops of the documentation ---


def torch_loop(corpus: str, steps: int, state: dict[str, Any] | None = None) -> tuple[list[float], dict[str, Any]]:
    stream = stream_of(corpus)
    if state is not None:
        stream.load_state_dict(state["stream"])
    model = prepare(bert(), stream)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    losses = []
    model.eval()  # without dropout, so that the losses can be compared
    for batch in stream:
        loss = model(**batch).loss
        (loss / stream.micro_batches_per_step).backward()
        losses.append(loss.item())
        if len(losses) % stream.micro_batches_per_step == 0:
            optimizer.step()
            optimizer.zero_grad()
            if stream.step == steps:
                break
    return losses, {"stream": stream.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_a_torch_loop_goes_on_as_if_it_had_not_stopped(corpus: str) -> None:
    whole, _ = torch_loop(corpus, 6)
    first, state = torch_loop(corpus, 3)
    then, _ = torch_loop(
        corpus, 6, json.loads(json.dumps({"stream": state["stream"]})) | {k: state[k] for k in ("model", "optimizer")}
    )
    assert first + then == whole
    assert len(whole) == 12


def test_an_accelerate_loop_takes_the_stream_as_it_is(corpus: str) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    stream = stream_of(corpus, device=accelerator.device)
    model = prepare(bert(), stream)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    before = [p.detach().sum().item() for p in model.parameters()]
    for batch in stream:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
        if stream.step == 2:
            break
    assert [p.detach().sum().item() for p in model.parameters()] != before


class StreamCallback(TrainerCallback):
    """Keeps the state of the stream beside the checkpoints of a Trainer."""

    def __init__(self, stream: TokenStream) -> None:
        self.stream = stream

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "stream.json").write_text(json.dumps(self.stream.state_dict()))


class StreamTrainer(Trainer):
    """A Trainer that takes the micro-batches of a stream as they are."""

    def get_train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        return DataLoader(self.train_dataset, batch_size=None)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        self.seen.append(inputs["input_ids"].clone())
        output = model(**inputs)
        return (output.loss, output) if return_outputs else output.loss


def trained(corpus: str, out: Path, steps: int, resume: int | None = None) -> list[torch.Tensor]:
    stream = stream_of(corpus)
    if resume is not None:
        stream.load_state_dict(json.loads((out / f"checkpoint-{resume}" / "stream.json").read_text()))
    arguments = TrainingArguments(
        str(out), max_steps=steps, gradient_accumulation_steps=stream.micro_batches_per_step, save_steps=2, logging_steps=1,
        ignore_data_skip=True, report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
        accelerator_config={"dispatch_batches": False},
    )  # fmt: skip
    trainer = StreamTrainer(prepare(bert(), stream), arguments, train_dataset=stream, callbacks=[StreamCallback(stream)])
    trainer.seen = []
    trainer.train(resume_from_checkpoint=None if resume is None else str(out / f"checkpoint-{resume}"))
    return trainer.seen


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_of_transformers_goes_on_with_the_next_rows(corpus: str, tmp_path: Path) -> None:
    whole = trained(corpus, tmp_path / "whole", 4)
    first = trained(corpus, tmp_path / "cut", 2)
    then = trained(corpus, tmp_path / "cut", 4, resume=2)
    assert len(whole) == 8
    assert torch.equal(torch.stack(first + then), torch.stack(whole))


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_an_untouched_model_takes_rows_of_one_document(corpus: str, objective: Any) -> None:
    stream = stream_of(corpus, packing="none", objective=objective)
    batch = next(iter(stream))
    assert batch.keys() == {"input_ids", "labels", "attention_mask"}
    torch.manual_seed(0)
    model = bert() if objective == "mlm" else LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48))
    loss = model.eval()(**batch).loss
    packed = stream_of(corpus, packing="none", objective=objective)
    packed.plan.layout.__dict__["packing"] = "best_fit"  # the same rows, as a prepared model takes them
    labels = next(iter_prepared(packed, model))
    torch.testing.assert_close(prepare(model, packed)(**labels).loss, loss, rtol=1e-4, atol=1e-5)
    filled = batch["attention_mask"].sum(dim=1)
    assert filled.min() < 64
    assert bool((batch["input_ids"][batch["attention_mask"] == 0] == 0).all())


def iter_prepared(stream: TokenStream, model: Any) -> Iterator[dict[str, torch.Tensor]]:
    stream.is_prepared = True
    return iter(stream)


# --- The state ---


def test_the_state_is_exact_at_every_micro_batch(corpus: str) -> None:
    whole = taken(stream_of(corpus), 10)
    for count in range(10):
        begun = stream_of(corpus)
        taken(begun, count)
        state = json.loads(json.dumps(begun.state_dict()))
        again = stream_of(corpus)
        again.load_state_dict(state)
        assert same(taken(again, 10 - count), whole[count:]), count


def test_other_workers_give_the_same_batches_and_go_on_where_the_stream_was_closed(corpus: str) -> None:
    whole = taken(stream_of(corpus), 8)
    with stream_of(corpus, workers=2) as stream:
        first = taken(stream, 3)
        stream.close()
        assert same(first + taken(stream, 5), whole)


def test_a_mixture_ends_after_its_epochs_with_every_document_once(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(json_lines(documents(30, seed=9)))
    sources = (SourceConfig("a", corpus, weight=2.0), SourceConfig("b", str(tmp_path / "b.jsonl")))
    stream = stream_of(DataConfig(sources=sources), max_epochs=1, objective="clm")  # which hides no token
    stream.is_prepared = True
    batches = list(stream)
    assert list(stream) == []
    assert len(batches) == stream.micro_batches_per_step * stream.step
    rows = [word_tokenizer().decode(row).replace(" ##", "") for batch in batches for row in batch["input_ids"]]
    numbers = [int(found) for row in rows for found in re.findall(r"doc (\d{6})", row)]
    assert sorted(numbers) == [*range(60), *range(1000, 1060), *range(2000, 2060), *range(9000, 9030)]


def test_max_steps_end_the_stream(corpus: str) -> None:
    stream = stream_of(corpus, max_steps=2)
    stream.is_prepared = True
    assert len(list(stream)) == 4
    assert stream.step == 2


def test_dense_labels_are_those_of_the_slots(corpus: str) -> None:
    sparse, dense = taken(stream_of(corpus), 1)[0], taken(stream_of(corpus, dense_labels=True), 1)[0]
    labelled = sparse["labels"] >= 0
    flat = dense["labels"].reshape(-1)
    assert dense.keys() == {"input_ids", "labels", "position_ids", "cu_seq_lens"}
    assert torch.equal(flat[sparse["label_positions"][labelled]], sparse["labels"][labelled])
    assert int((flat >= 0).sum()) == int(labelled.sum())
    stream = stream_of(corpus)
    model = prepare(bert(), stream).eval()
    torch.testing.assert_close(model(**sparse).loss, model(**dense).loss)


def test_ranks_without_a_process_group_share_the_lanes(corpus: str) -> None:
    whole = taken(stream_of(corpus), 4)
    parts = [taken(stream_of(corpus, rank=rank, world=2), 2) for rank in range(2)]
    rows = [torch.cat([batch["input_ids"] for batch in whole[2 * step : 2 * step + 2]]) for step in range(2)]
    for step in range(2):
        assert torch.equal(torch.cat([parts[rank][step]["input_ids"] for rank in range(2)]), rows[step])


# --- What is refused ---


def refused(call: Any) -> str:
    with pytest.raises(StreamPretrainError) as caught:
        call()
    return str(caught.value)


def test_packed_rows_reach_no_model_that_was_not_prepared(corpus: str) -> None:
    assert refused(lambda: next(iter(stream_of(corpus)))) == (
        "rows hold several documents, which an ordinary model mixes: pass your model through prepare(model, stream), "
        'or give packing="none"'
    )


def test_a_model_with_attention_dropout_is_refused_with_the_argument_that_mends_it(corpus: str) -> None:
    model = BertForMaskedLM(BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=64))
    assert refused(lambda: prepare(model, stream_of(corpus))) == (
        "BertForMaskedLM has attention_probs_dropout_prob 0.1, which packed attention does not: load it with "
        "from_pretrained(..., attention_probs_dropout_prob=0.0)"
    )
    short = bert()
    assert "must be at most 64" in refused(lambda: prepare(short, stream_of(corpus, sequence_length=128)))


def test_what_is_no_language_model_is_refused_by_its_type(corpus: str) -> None:
    name: Any = "bert-base-uncased"
    assert refused(lambda: prepare(name, stream_of(corpus))) == (
        "the model is of type str: give one of transformers, before it is wrapped or compiled"
    )
    assert refused(lambda: prepare(bert().base_model, stream_of(corpus))) == (
        "BertModel has no language-model head: load it with AutoModelForMaskedLM"
    )


def test_a_model_of_another_objective_or_vocabulary_is_refused(corpus: str) -> None:
    sizes = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    causal = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=SIZES["vocab_size"]))
    assert refused(lambda: prepare(causal, stream_of(corpus))) == (
        'GPT2LMHeadModel sees no later tokens: give the stream objective="clm", or load an encoder'
    )
    small = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=10))
    assert refused(lambda: prepare(small, stream_of(corpus, objective="clm"))) == (
        "GPT2LMHeadModel has 10 tokens, the tokenizer 76: call resize_token_embeddings(76) first"
    )


def test_words_that_are_no_option_are_refused(corpus: str) -> None:
    assert refused(lambda: stream_of(corpus, packing="best-fit")) == (
        "--data.packing is 'best-fit', not one of best_fit, concat, none"
    )
    assert refused(lambda: stream_of(corpus, objective="nsp")) == "--objective.name is 'nsp', not one of mlm, clm"


def test_a_copy_of_a_prepared_model_has_its_own_weights(corpus: str) -> None:
    stream = stream_of(corpus)
    model = prepare(bert(), stream).eval()
    batch = next(iter(stream))
    pickled = io.BytesIO()
    torch.save(model, pickled)
    pickled.seek(0)
    for copied in copy.deepcopy(model), torch.load(pickled, weights_only=False):
        assert torch.equal(copied(**batch).loss, model(**batch).loss)
        for weights in copied.parameters():
            torch.nn.init.zeros_(weights)
        assert copied(**batch).loss.item() == pytest.approx(math.log(SIZES["vocab_size"]))
        assert model(**batch).loss.item() != pytest.approx(math.log(SIZES["vocab_size"]))


def test_a_model_is_prepared_for_several_streams(corpus: str) -> None:
    training, evaluating = stream_of(corpus), stream_of(corpus, seed=1, sequence_length=32)
    model = prepare(prepare(bert(), training), evaluating)
    for stream in training, evaluating:
        assert model(**next(iter(stream))).loss.isfinite()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_workers_of_a_data_loader_are_refused(corpus: str) -> None:
    stream = stream_of(corpus)
    stream.is_prepared = True
    said = refused(lambda: next(iter(DataLoader(stream, batch_size=None, num_workers=1))))
    assert "give it num_workers=0, and the stream workers" in said


def test_a_state_of_another_stream_is_refused_by_what_differs(corpus: str, tmp_path: Path) -> None:
    stream = stream_of(corpus)
    taken(stream, 1)
    state = stream.state_dict()
    assert refused(lambda: stream_of(corpus, seed=1).load_state_dict(state)) == (
        "the state is of another stream: train.seed was 0, is 1"
    )
    assert refused(lambda: stream_of(corpus, micro_batch_size=2).load_state_dict(state)) == (
        "the state is from inside a step, on 1 ranks with micro-batches of 4 rows: load it there, or save at the end of a step"
    )
    no_state = {name: value for name, value in state.items() if name != "micro_batches"}
    assert refused(lambda: stream_of(corpus).load_state_dict(no_state)) == (
        "this is not the state of a TokenStream: micro_batches is missing"
    )
    assert "cursors of version 3" in refused(lambda: stream_of(corpus).load_state_dict({**state, "version": 3}))


def test_ranks_that_would_have_to_talk_are_refused_without_a_process_group(corpus: str) -> None:
    said = refused(lambda: stream_of(corpus, rank=0, world=2, max_epochs=1))
    assert said.startswith("2 ranks exchange rows: initialise torch.distributed first")
    assert refused(lambda: stream_of(corpus, rank=2, world=2)) == "rank 2 is not one of 2"
    assert refused(lambda: stream_of(corpus, rank=0)) == "give both rank and world, or neither"


def test_ten_names_at_most_are_public_and_all_are_there() -> None:
    assert len(stream_pretrain.__all__) <= 10
    assert all(getattr(stream_pretrain, name) for name in stream_pretrain.__all__)
    with pytest.raises(AttributeError):
        _ = stream_pretrain.nothing
