"""The usual recipes that training is compared with: on data that was tokenized before the clock starts."""

from __future__ import annotations

import glob
import statistics
from itertools import chain
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from benchmarking import MASK_RATE, Tokenize, usual_recipe
from timed_training import LEARNING_RATE, Clock, Measured, Setting
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)


def padded(setting: Setting) -> Measured:
    """The loop of transformers' run_mlm_no_trainer."""
    accelerator = Accelerator(mixed_precision="bf16" if setting.cuda else "no")
    tokenizer, model = _usual_model(setting)
    rows = _texts(setting).map(
        lambda examples: tokenizer(
            examples["text"], truncation=True, max_length=setting.sequence_length, return_special_tokens_mask=True
        ),
        batched=True,
        remove_columns=["text"],
    )
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    scheduler = get_scheduler("linear", optimizer, 0, 100_000)
    model, optimizer, loader, scheduler = accelerator.prepare(
        model,
        optimizer,
        DataLoader(rows, shuffle=True, collate_fn=collate, batch_size=setting.batch, drop_last=True),
        scheduler,
    )
    model.train()
    clock = Clock(setting)
    framing = tokenizer.num_special_tokens_to_add() * setting.batch
    for batch in chain.from_iterable(iter(loader) for _ in range(1_000)):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if clock.tick(batch["attention_mask"].sum() - framing):
            break
    return clock.measured()


def grouped(setting: Setting) -> Measured:
    """transformers.Trainer on the rows of run_mlm's group_texts."""
    tokenizer, model = _usual_model(setting)
    rows = usual_recipe(_texts(setting), ["text"], Tokenize(tokenizer), setting.sequence_length)
    tokens_of_row = statistics.mean(row.count(0) for row in rows["special_tokens_mask"])
    clock = Clock(setting)

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick(tokens_of_row * setting.batch)

    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{setting.folder}/trainer",
            per_device_train_batch_size=setting.batch,
            max_steps=setting.warmup + setting.steps,
            learning_rate=LEARNING_RATE,
            seed=setting.seed,
            bf16=setting.cuda,
            use_cpu=not setting.cuda,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_drop_last=True,
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE),
        train_dataset=rows,
        callbacks=[Ticks()],
    ).train()
    return clock.measured()


def _usual_model(setting: Setting) -> tuple[Any, Any]:
    torch.manual_seed(setting.seed)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(setting.model))
    return AutoTokenizer.from_pretrained(setting.tokenizer), model


def _texts(setting: Setting) -> Any:
    datasets.disable_progress_bars()
    cache = f"{setting.folder}/cache"
    files = sorted(glob.glob(f"{setting.corpus}/*"))
    return datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)
