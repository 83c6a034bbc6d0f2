"""The module that the loop trains: its loss, its head on labelled positions, and the ways to compute it."""

import pytest
import torch
import torch.nn.functional as F
from transformers.utils import logging

from stream_pretrain.data.rows.batches import Batch
from stream_pretrain.model.loading import recompute_activations
from stream_pretrain.model.packed_attention import LONGEST_MASKED_ROW_WITHOUT_HOST, PACKED_ATTENTION
from stream_pretrain.model.positions import first_position
from stream_pretrain.model.pretraining import PretrainingModel
from tests.model.families import (
    CAUSAL,
    IGNORE_REGISTERED_ATTENTION,
    MASKED,
    gradients,
    largest_difference,
    packed_rows,
    tiny_model,
)

NO_ATTENTION_DROPOUT = {"attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0, "attn_pdrop": 0.0}
LABEL_POSITIONS = torch.tensor([0, 3, 9, 10, 20, 24, 30, 38, 0, 0])
LABELS = torch.tensor([11, 12, 13, 14, 15, 16, 17, 18, -100, -100])


def test_padding_at_the_end_of_a_packed_row_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    logging.get_logger("transformers.modeling_utils").warning_once.cache_clear()
    model = tiny_model("gpt2")
    model.config.pad_token_id = 3
    model.set_attn_implementation(PACKED_ATTENTION)
    input_ids, position_ids, cu_seq_lens = packed_rows()
    input_ids[:, -1] = 3
    with caplog.at_level("WARNING"):
        PretrainingModel(model).logits(input_ids, position_ids, cu_seq_lens, torch.arange(4))
    assert caplog.messages == []


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # DeBERTa of transformers 5.17
@pytest.mark.parametrize("family", [*MASKED, *CAUSAL, *IGNORE_REGISTERED_ATTENTION])
def test_the_head_on_labelled_positions_equals_the_dense_head(family: str) -> None:
    model, reference = tiny_model(family), tiny_model(family)
    input_ids, _, _ = packed_rows()
    dense_labels = torch.full((48,), -100)
    dense_labels[LABEL_POSITIONS[:8]] = LABELS[:8]

    trained = PretrainingModel(model)
    logits = trained.head.logits(LABEL_POSITIONS, input_ids=input_ids)
    loss = F.cross_entropy(logits, LABELS, ignore_index=-100, reduction="sum")
    loss.backward()
    dense = reference(input_ids).logits.flatten(0, 1)
    expected = F.cross_entropy(dense, dense_labels, ignore_index=-100, reduction="sum")
    expected.backward()

    assert logits.shape == (10, 100)
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-5)
    assert largest_difference(gradients(model), gradients(reference)) < 1e-6
    assert trained.head._positions is None
    assert model(input_ids).logits.shape == (2, 24, 100)


def test_the_loss_is_the_sum_over_labels_and_hits_are_counted() -> None:
    model = PretrainingModel(tiny_model("bert", PACKED_ATTENTION), sources=3)
    rows = packed_rows()
    logits = model.logits(*rows, LABEL_POSITIONS).detach()
    likeliest = logits.argmax(-1)
    labels = torch.where(torch.arange(10) < 3, likeliest, LABELS)
    assert not torch.equal(likeliest[3:8], LABELS[3:8])

    loss, correct, of_source = model(**vars(Batch(*rows, LABEL_POSITIONS, labels, torch.arange(10) // 4)))

    expected = -logits.log_softmax(-1)[torch.arange(8), labels[:8]].sum()
    torch.testing.assert_close(loss.detach(), expected)
    assert loss.dtype == torch.float32
    assert correct == 3
    losses = -logits.log_softmax(-1)[torch.arange(8), labels[:8]]
    torch.testing.assert_close(of_source, torch.stack([losses[:4].sum(), losses[4:].sum(), torch.tensor(0.0)]))


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL])
def test_without_labels_loss_and_gradients_are_zero_in_training_mode(family: str) -> None:
    model = PretrainingModel(tiny_model(family, PACKED_ATTENTION, **NO_ATTENTION_DROPOUT)).train()

    nothing = torch.full_like(LABELS, -100)
    loss, correct, _ = model(**vars(Batch(*packed_rows(), LABEL_POSITIONS, nothing, torch.zeros_like(LABELS))))
    loss.backward()

    assert loss.item() == 0.0
    assert correct.item() == 0
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients(model))
    assert len(gradients(model)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("family", "first"), [("bert", 0), ("roberta", 2), ("xlm-roberta", 2), ("modernbert", 0), ("opt", 0), ("llama", 0)]
)
def test_positions_start_where_the_model_starts_them(family: str, first: int) -> None:
    assert first_position(tiny_model(family)) == first


@pytest.mark.parametrize("family", [family for family in (*MASKED, *CAUSAL) if family != "albert"])  # which has no support
def test_gradient_checkpointing_changes_nothing_dropout_included(family: str) -> None:
    results = []
    for checkpointing in (False, True):
        bare = tiny_model(family, PACKED_ATTENTION, **NO_ATTENTION_DROPOUT, use_cache=False)
        if checkpointing:
            recompute_activations(bare)
        model = PretrainingModel(bare).train()
        torch.manual_seed(3)
        loss, _, _ = model(**vars(Batch(*packed_rows(), LABEL_POSITIONS, LABELS, torch.zeros_like(LABELS))))
        loss.backward()
        results.append((loss.item(), gradients(model)))
    assert results[0][0] == results[1][0]
    assert largest_difference(results[1][1], results[0][1]) < 1e-6


@pytest.mark.parametrize("family", [*MASKED, *CAUSAL, "mpnet"])
def test_a_forward_and_backward_pass_reads_no_tensor_back(family: str) -> None:
    """On the device that has shapes but no values, whatever a GPU would have to be waited for is an error."""
    settings = NO_ATTENTION_DROPOUT | ({"use_cache": False} if family in CAUSAL else {})
    model = PretrainingModel(tiny_model(family, None if family == "mpnet" else PACKED_ATTENTION, **settings)).train().to("meta")
    batch = [tensor.to("meta") for tensor in (*packed_rows(), LABEL_POSITIONS, LABELS, torch.zeros_like(LABELS))]
    loss, _, _ = model(**vars(Batch(*batch)))
    loss.backward()
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        loss.item()


def compiled_gives_the_same(family: str, length: int, layers: int) -> list[int]:
    """Whether a compiled model computes the same from batch to batch; returns the graphs there are after each."""
    model = PretrainingModel(
        tiny_model(
            family, None if family == "mpnet" else PACKED_ATTENTION, max_position_embeddings=600, n_positions=600,
            num_hidden_layers=layers, **({"use_cache": False} if family in CAUSAL else {}),
        )
    )  # fmt: skip
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = []
    for segments in ([[10, length - 10]], [[length - 4, 4]], [[length // 4, length // 4, length - length // 4 * 2]]):
        batch = vars(Batch(*packed_rows(segments), LABEL_POSITIONS % length, LABELS, torch.zeros_like(LABELS)))
        model._compiled_call_impl = None
        model.zero_grad()
        loss, _, _ = model(**batch)
        loss.backward()
        expected = gradients(model)
        model.zero_grad()
        model.compile(backend="aot_eager", dynamic=False)
        compiled_loss, _, _ = model(**batch)
        compiled_loss.backward()
        torch.testing.assert_close(compiled_loss, loss)
        assert largest_difference(gradients(model), expected) < 1e-5
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return graphs


def test_a_compiled_model_computes_the_same_in_one_graph_whatever_the_number_of_segments() -> None:
    assert compiled_gives_the_same("bert", 24, layers=2) == [1, 1, 1]


@pytest.mark.long
@pytest.mark.parametrize("family", [*MASKED, *CAUSAL, "mpnet"])
def test_every_family_is_compiled_into_one_graph(family: str) -> None:
    assert compiled_gives_the_same(family, 24, layers=2) == [1, 1, 1]


# Dynamo itself looks at the gradient of a tensor that has none when it resumes after a graph break.
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_computes_long_rows_one_document_at_a_time() -> None:
    graphs = compiled_gives_the_same("bert", LONGEST_MASKED_ROW_WITHOUT_HOST + 8, layers=1)
    assert graphs == [graphs[0]] * 3
