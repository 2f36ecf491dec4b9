"""What a modeller can set: the shape of the towers, the loss, and how training runs."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from model.index_factory import PATTERN
from pipelines.contract.strict import StrictModel


class ModelConfig(StrictModel):
    """The architecture. A checkpoint can only be continued with the same one."""

    tower: str = Field(
        "dssm",
        description="A file of model/network/towers: dssm, senet, parallel (channels), youtube_dnn (items are ids alone).",
    )
    settings: dict[str, Any] = Field(
        {}, description="What the tower's own file lets you set, e.g. {channels: [dnn, fm]}."
    )
    dim: PositiveInt = Field(64, description="Length of user and item vectors; the index grows with it.")
    hidden: list[PositiveInt] = Field([128], description="Hidden widths of each MLP; one layer suffices for ids.")
    embedding_dim: PositiveInt = Field(32, description="Length of embeddings of ids (users, items, history).")
    small_embedding_dim: PositiveInt = Field(16, description="Length of embeddings of categories and buckets.")
    share_history: bool = Field(
        True, description="History reads the item side's id table: half the parameters, and every item trains both."
    )
    history_pooling: Literal["mean", "decay", "attention"] = Field(
        "mean", description="mean: all items alike; decay: older positions weigh less; attention: learned weights."
    )
    history_decay: float = Field(
        0.9, gt=0, le=1, description="Of decay: what an item weighs against the next newer one."
    )
    history_features: list[str] = Field(
        [], description="Item categorical features also pooled over the history, e.g. its categories."
    )
    leave_out: list[str] = Field(
        [],
        description="Features that the samples have and this model does without, on both sides: to see what they are worth.",
    )
    id_dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Chance to hide an id in training, so that index 1 learns to serve new ones.",
    )


class StreamingConfig(StrictModel):
    """The streaming frequency estimator (Yi et al., RecSys 2019)."""

    alpha: float = Field(
        0.01, gt=0, le=1, description="Weight of the newest gap: higher follows change faster and is noisier."
    )
    slots: PositiveInt = Field(
        262_144, description="Slots of each hash function; at least as many as items, or items share counts."
    )
    hashes: PositiveInt = Field(2, description="Hash functions; an item is miscounted only where it shares all slots.")
    initial_gap: float | None = Field(
        None, ge=1, description="Steps between two hits of an item never hit; default: catalogue / batch size."
    )
    warm_up: bool = Field(
        True, description="The first gaps of a slot count in full: with alpha alone 100 hits still leave a third of the "
        "initial guess."
    )  # fmt: skip


class SelfSupervisionConfig(StrictModel):
    """A second loss on the item tower alone: two views of an item meet (Yao et al., 2021)."""

    weight: PositiveFloat = Field(0.1, description="a in L_main + a L_self.")
    mask: Literal["random", "dropout", "complementary", "correlated"] = Field(
        "correlated",
        description="What a view lacks. random: any fields; dropout: half of the values of multi-valued features; "
        "complementary: one half of the fields here, the other there; correlated: halves of fields that tell of each other.",
    )
    items: PositiveInt = Field(
        512, ge=2, description="Items a step over all processes, drawn uniformly from the catalogue."
    )
    temperature: PositiveFloat = Field(0.1, description="Divides the cosines of the views.")


class LossConfig(StrictModel):
    """The training objective."""

    kind: Literal["listwise", "pointwise", "hinge", "logistic"] = Field(
        "listwise",
        description="listwise: sampled softmax, the positive against all candidates; pointwise: binary cross entropy; "
        "hinge, logistic: pairwise, the positive against each candidate.",
    )
    temperature: PositiveFloat = Field(0.07, description="Divides the cosines, which span only [-1, 1] otherwise.")
    learned_temperature: bool = Field(False, description="Train the temperature too, from the value above.")
    correction: Literal["none", "classic", "mns", "revisited"] = Field(
        "classic",
        description="logQ correction: without it popular items are pushed down for being sampled often. pointwise and "
        "pairwise: any but none weighs each shared candidate by 1 / expected count.",
    )
    frequencies: Literal["exact", "streaming"] = Field(
        "exact", description="Of the in-batch positives: counted in the written samples, or estimated as batches come."
    )
    streaming: StreamingConfig = StreamingConfig()
    margin: PositiveFloat = Field(1.0, description="Of hinge, in logits: cosines may differ by margin x temperature.")
    negatives_per_positive: PositiveFloat = Field(
        3.0, description="Of pointwise: what all negatives of a row weigh together; its positive weighs 1."
    )
    hard_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Of pointwise and pairwise: what a row's hard negatives weigh in the mean over its negatives; the "
        "shared ones have the rest, and all of it where the row has no hard ones. listwise counts each once.",
    )
    self_supervision: SelfSupervisionConfig | None = Field(
        None, description="A second loss on item features, for items that few have clicked; null: none."
    )


class TrainingConfig(StrictModel):
    """How training runs. Nothing here changes what a checkpoint can be loaded into."""

    batch_size: PositiveInt = Field(4096, description="Rows a step, over ALL processes: also the in-batch negatives.")
    epochs: PositiveInt = Field(1, description="Passes over a night's rows; more than one overfits ids quickly.")
    bootstrap_epochs: PositiveInt = Field(2, description="Passes on the first night, which starts from nothing.")
    optimizer: Literal["adamw", "adagrad"] = Field("adamw", description="Optimiser of dense parameters.")
    learning_rate: PositiveFloat = Field(1e-3, description="Of the MLPs.")
    embedding_learning_rate: PositiveFloat = Field(
        5e-3, description="Of embedding tables; higher, since a row is touched in few steps."
    )
    warm_up_steps: int = Field(
        0, ge=0, description="Steps over which both learning rates rise to their value: Adam's first ones are noise."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How both learning rates go on from there: not at all, or down to `final_rate_share`."
    )
    final_rate_share: float = Field(
        0.0, ge=0, lt=1, description="Of linear and cosine: what is left of the learning rates after the last step."
    )
    warm_start_scale: PositiveFloat = Field(
        0.3,
        description="Factor on both learning rates on nights that continue last night's model.",
    )
    weight_decay: float = Field(1e-5, ge=0, description="Of the MLPs only: decay would forget rows not seen tonight.")
    embedding_rows_sparse: PositiveInt = Field(
        # Measured (2 cores, batch 2048, history 50, 8k candidates, dim 32): fused AdamW against SparseAdam takes
        # 18 against 46 ms a step at 100k rows and 129 against 94 ms at 1M. They cross at about 400k.
        400_000,
        description="Embedding tables of at least so many rows get sparse gradients: SparseAdam or Adagrad.",
    )
    embedding_rows_sharded: PositiveInt | None = Field(
        None,
        description="Embedding tables of at least so many rows are held in shares, one a process, with sparse gradients: "
        "what does not fit into each process does into all. No effect on one process; null: every process holds all.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the towers' matrix products (autocast); logits and losses stay in float32."
    )
    gradient_clip: PositiveFloat = Field(10.0, description="Largest gradient norm; above it the step is scaled down.")
    processes: PositiveInt = Field(1, description="Training processes; each reads its share of the row groups.")
    threads: PositiveInt | None = Field(None, description="Threads a process; default: cores divided by processes.")
    launcher: Literal["torchrun", "spark"] = Field(
        "torchrun", description="Who starts processes > 1: this machine, or Spark's barrier mode on executors."
    )
    checkpoint_steps: PositiveInt | None = Field(
        1000, description="Steps between two checkpoints on the way, from which a killed training goes on; null: none."
    )
    timeout_seconds: PositiveInt = Field(1800, description="How long a collective waits for the slowest process.")
    shuffle_window: PositiveInt = Field(65_536, description="Rows shuffled together; files are shuffled already.")
    catalogue_memory_mb: PositiveInt = Field(
        4096, description="Item features that take more are mapped from files in each process, not held in its memory."
    )
    reader_threads: PositiveInt = Field(2, description="Threads decoding Parquet in each process.")


class IndexConfig(StrictModel):
    """The Faiss index of a release."""

    factory: str | None = Field(
        None,
        pattern=PATTERN,
        description="Flat (exact), IVFn,Flat, IVFn,SQ8, IVFn,PQm or HNSWm; null: by the number of items (model/serving).",
    )
    recall_target: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Of the exact answer; the smallest nprobe or efSearch that surely reaches it is published.",
    )
    recall_at: PositiveInt = Field(
        100, description="Items a user that the recall is measured on: as many as you serve."
    )
    sweep_queries: PositiveInt = Field(
        1000, description="Users, chosen by hash, whose vectors it is measured with: recall to about half a percent."
    )
