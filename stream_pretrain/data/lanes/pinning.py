"""What a run reads and how it is dealt: pinned at its first start, and relocated at each resume."""

from __future__ import annotations

from dataclasses import replace

from stream_pretrain.config import Config, DataConfig, sources_of, storage_options
from stream_pretrain.data.corpus.pinned_corpus import PinnedCorpus, PinnedSource
from stream_pretrain.data.corpus.remote_files import MOST_RECHECKED, with_web_sizes
from stream_pretrain.data.corpus.resolve import resolve
from stream_pretrain.data.corpus.shard import Corpus
from stream_pretrain.data.corpus.unchanged_since_start import resolve_pinned
from stream_pretrain.data.documents.document import ReadOptions
from stream_pretrain.data.lanes.bundles import bundle_bytes, bundles_of, is_small
from stream_pretrain.data.lanes.content_sizes import MOST_OPENED, states_content_size, with_content_bytes
from stream_pretrain.data.lanes.group_sizes import first_step_rows, full_group_rows
from stream_pretrain.data.lanes.lane_count import auto_lanes
from stream_pretrain.data.lanes.mixture import Shares, largest_shares, parts_of
from stream_pretrain.data.lanes.reading_costs import MOST_AMPLIFICATION, reading_cost
from stream_pretrain.data.lanes.row_layout import RowLayout
from stream_pretrain.data.lanes.source_plan import SourcePlan
from stream_pretrain.data.lanes.window_sizes import request_bytes, window_bytes
from stream_pretrain.data.transport.options import TransportOptions
from stream_pretrain.errors import CheckpointError, ConfigError
from stream_pretrain.urls import is_remote, on_web


def pin(config: Config, world: int) -> PinnedCorpus:
    """Find the shards of a new run, and fix its lanes and windows."""
    _refuse_idle_ranks(config, world)
    options = sources_of(config.data)
    shares = largest_shares(share_schedule(config.data))
    full_bundle = [bundle_bytes(config.data, share) for share in shares]
    corpora = [_sized(source, of_source) for source, of_source in zip(options, full_bundle, strict=True)]
    bundles = [bundles_of(corpus.shards, of_source) for corpus, of_source in zip(corpora, full_bundle, strict=True)]
    lanes = auto_lanes(config, corpora, bundles, world) if config.data.lanes == "auto" else config.data.lanes
    names = [source.name for source in config.data.sources] or [""]
    pinned = PinnedCorpus(
        tuple(
            PinnedSource(
                **vars(corpus),
                name=name,
                window_bytes=window_bytes(config.data, corpus, lanes, share),
                bundles=of_source,
                group_rows=full_group_rows(config.data.sequence_length, lanes, share),
            )
            for name, corpus, share, of_source in zip(names, corpora, shares, bundles, strict=True)
        ),
        lanes,
    )
    _refuse_amplified_transfers(config, pinned, world)
    return pinned


def requests_of_start(config: Config, pinned: PinnedCorpus, *, resumes: bool) -> int:
    """Requests about single files before the first window is read, besides listings: those of `_sized`."""
    options, shares = sources_of(config.data), largest_shares(share_schedule(config.data))
    requests = 0
    for source, of_source, share in zip(pinned.sources, options, shares, strict=True):
        full_bundle = bundle_bytes(of_source, share)
        before = [replace(shard, content_bytes=None) for shard in source.shards if is_remote(shard.url)]
        of_size = sum(on_web(shard.url) for shard in before)
        of_content = sum(states_content_size(shard) and not is_small(shard, full_bundle) for shard in before)
        requests += of_size if not resumes or of_size <= MOST_RECHECKED else 0
        requests += 0 if resumes else min(MOST_OPENED, of_content)
    return requests


def _sized(source: DataConfig, full_bundle: int) -> Corpus:
    """The shards of a source with their sizes; the content of remote ones that a bundle may hold is estimated."""
    return with_content_bytes(with_web_sizes(resolve(source), source), read_options(source, full_bundle, 1.0), full_bundle)


def _refuse_idle_ranks(config: Config, world: int) -> None:
    """Refuse more ranks than a step has rows."""
    batch = config.train.global_batch_size
    if world > batch:
        raise ConfigError(f"--global-batch-size {batch} does not give each of {world} ranks a row: give more, or fewer ranks")


def _refuse_amplified_transfers(config: Config, pinned: PinnedCorpus, world: int) -> None:
    """Refuse remote shards that many processes would read completely, unless --lanes is given."""
    remote = any(is_remote(shard.url) for shard in pinned.shards)
    cost = reading_cost(source_plans(config, pinned), world, config.data.workers)
    if remote and config.data.lanes == "auto" and cost.amplification > MOST_AMPLIFICATION:
        raise ConfigError(
            f"{len(pinned.shards)} remote shards, which can only be read from the start, would be read "
            f"{cost.amplification:.1f} times in an epoch, by {world * max(1, config.data.workers)} processes: give "
            f"--lanes {pinned.lanes} to accept that, or fewer --lanes or --workers, or more and smaller shards"
        )


def share_schedule(data: DataConfig) -> tuple[Shares, ...]:
    """The shares of the sources, by the step from which they apply."""
    current = {source.name: source.weight for source in data.sources}
    if not current:
        return (Shares(0, parts_of([1])),)
    schedule = [Shares(0, parts_of(list(current.values())))]
    for change in data.weight_schedule:
        current |= change.weights
        schedule.append(Shares(change.from_step, parts_of(list(current.values()))))
    return tuple(schedule)


def relocate(config: Config, pinned: PinnedCorpus, world: int) -> PinnedCorpus:
    """The corpus of a resumed run, with its shards where they are now.

    Raises: SourceError with the shards that differ, and as `refuse_mismatch`.
    """
    _refuse_idle_ranks(config, world)
    refuse_mismatch(config, pinned)
    return replace(
        pinned,
        sources=tuple(
            resolve_pinned(source, options) for source, options in zip(pinned.sources, sources_of(config.data), strict=True)
        ),
    )


def refuse_mismatch(config: Config, pinned: PinnedCorpus) -> None:
    """Refuse other sources, lanes or windows than the pinned ones. Raises: CheckpointError, ConfigError."""
    names = [source.name for source in config.data.sources] or [""]
    if [source.name for source in pinned.sources] != names:
        found = ", ".join(source.name for source in pinned.sources)
        raise CheckpointError(f"corpus.json is of another run (sources: {found}; {pinned.lanes} lanes): use another checkpoint")
    given = [("--lanes", config.data.lanes, pinned.lanes)]
    if config.data.window_bytes != "auto":
        for source, share in zip(pinned.sources, largest_shares(share_schedule(config.data)), strict=True):
            wanted = window_bytes(config.data, source, pinned.lanes, share)
            given.append(("--data.window-bytes", wanted, source.window_bytes))
    for option, value, fixed in given:
        if value not in ("auto", fixed):
            raise ConfigError(f"{option} is {value}, but the run began with {fixed} and cannot change it: leave the option out")


def row_layout(config: Config, lanes: int) -> RowLayout:
    """The layout of the rows of a run with this number of lanes."""
    return RowLayout(
        lanes=lanes,
        global_batch_size=config.train.global_batch_size,
        sequence_length=config.data.sequence_length,
        packing=config.data.packing,
        seed=config.train.seed,
    )


def source_plans(config: Config, pinned: PinnedCorpus) -> tuple[SourcePlan, ...]:
    """The plan of each source."""
    plans: list[SourcePlan] = []
    first_shard = 0
    limits = [source.max_epochs for source in config.data.sources] or [None]
    layout = row_layout(config, pinned.lanes)
    schedule = share_schedule(config.data)
    first_rows, shares = first_step_rows(schedule[0], layout), largest_shares(schedule)
    for source, options, max_epochs, share, first_step in zip(
        pinned.sources, sources_of(config.data), limits, shares, first_rows, strict=True
    ):
        plan = SourcePlan(
            **vars(source),
            first_shard=first_shard,
            layout=layout,
            heldout_fraction=options.heldout_fraction,
            max_epochs=config.train.max_epochs if max_epochs is None else max_epochs,
            read=read_options(options, source.window_bytes, share),
            skip_bad_shards=options.on_bad_shard == "skip",
            first_step_rows=first_step,
        )
        # In a mixture, every lane needs every source; one with a limit of epochs is dealt all the same, to be read so often.
        windows = sum(plan.windows_of(unit) for unit in range(len(plan.units)))
        plans.append(replace(plan, undealt=len(pinned.sources) > 1 and plan.max_epochs is None and windows < pinned.lanes))
        first_shard += len(plan.shards)
    return tuple(plans)


def read_options(data: DataConfig, window_bytes: int, share: float) -> ReadOptions:
    """How documents are found in the shards of a source that gives this share of the rows."""
    return ReadOptions(
        text_field=data.text_field,
        text_template=data.text_template,
        text_documents=data.text_documents,
        min_characters=data.min_characters,
        max_characters=data.max_characters,
        drop_duplicates=data.drop_duplicates,
        window_bytes=window_bytes,
        max_line_bytes=data.max_line_bytes,
        transport=TransportOptions(
            storage_options=storage_options(data.storage_options),
            retry_deadline=data.retry_deadline,
            block_bytes=request_bytes(share),
        ),
    )
