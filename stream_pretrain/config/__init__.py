"""The options of a run: their names, validation and secrets, and the name of the run. No heavy imports."""

from stream_pretrain.config.command_options import COMMAND_GROUPS
from stream_pretrain.config.corpus_options import DataConfig, EngineName, SourceConfig, TextDocuments, WeightChange
from stream_pretrain.config.option_field import option
from stream_pretrain.config.option_names import ALL_GROUPS, FLAGS, NAMES, SHORT, SYNONYMS, TYPES, help_texts, usual_name
from stream_pretrain.config.option_values import (
    defaults,
    fixed_options,
    flatten,
    sources_of,
    without_places,
)
from stream_pretrain.config.options import (
    GROUPS,
    Config,
    EvalConfig,
    EvalSetConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    TrainConfig,
    fields_of,
)
from stream_pretrain.config.run_name import run_directory
from stream_pretrain.config.secrets import redacted, redacted_text, secrets_of, shown_options, storage_options
from stream_pretrain.config.unknown_names import WITHOUT, instead, resolve, suggestion
from stream_pretrain.config.validation import (
    refuse_final_rate_above,
    refuse_unusable_values,
    steps_to_skip,
    template_fields,
    validate,
)
