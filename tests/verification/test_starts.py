"""A verification starts the train command with the options of a run."""

from __future__ import annotations

from stream_pretrain.arguments import parse
from stream_pretrain.config import Config, DataConfig, ModelConfig, RunConfig, SourceConfig, TrainConfig, WeightChange
from stream_pretrain.verification.starts import arguments_of


def test_options_come_back_from_the_command_line_that_is_made_of_them() -> None:
    sources = (SourceConfig("a", "x/*.gz", weight=2.0, text_field="body"), SourceConfig("b", "y", max_epochs=2))
    config = Config(
        data=DataConfig(sources=sources, weight_schedule=(WeightChange(3, {"a": 0.5}),), lanes=4, text_template="{a}\n{b}"),
        model=ModelConfig(path="m", trust_remote_code=True),
        train=TrainConfig(max_epochs=2, learning_rate=1e-5),
        run=RunConfig(wandb="disabled", save_every=3),
    )
    assert parse([*arguments_of(config)]) == config
