"""Settings of the model: towers, loss and training."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from model.item_item_config import ItemItemConfig
from pipelines.contract.strict import StrictModel


class ModelConfig(StrictModel):
    """The architecture. Training can continue a checkpoint only with the same architecture."""

    tower: str = Field(
        "dssm",
        description="A file of model/network/towers: dssm, senet, parallel (channels), youtube_dnn (items are only ids), "
        "sequence (a transformer over the history).",
    )
    settings: dict[str, Any] = Field(
        {}, description="Settings of the chosen tower, defined in its file, e.g. {channels: [dnn, fm]}."
    )
    dim: PositiveInt = Field(128, description="Length of user and item vectors. The index grows with it.")
    hidden: list[PositiveInt] = Field(
        [],
        description="Widths of the hidden layers of each MLP. None: towers are linear in their embeddings, which overfits "
        "least and suits ids and histories; [128] learns interactions of features.",
    )
    embedding_dim: PositiveInt = Field(128, description="Length of the embeddings of ids (users, items, history).")
    small_embedding_dim: PositiveInt = Field(16, description="Length of the embeddings of categories and buckets.")
    share_history: bool = Field(
        True,
        description="The history uses the id table of the item tower. Halves the parameters, and each item trains both uses.",
    )
    history_pooling: Literal["mean", "decay", "attention"] = Field(
        "mean",
        description="mean: equal weights; decay: older positions weigh less; attention: learned weights. The sequence tower "
        "does not pool.",
    )
    history_decay: float = Field(
        0.9, gt=0, le=1, description="For decay: weight of an item, relative to the next newer item."
    )
    history_items: PositiveInt | None = Field(
        None,
        description="Pool at most this many of the newest items of the history; null: all of them. The item-item part always "
        "reads all, so with a long `features.history.length` each can have what suits it. The sequence tower does not pool.",
    )
    history_features: list[str] = Field(
        [],
        description="Categorical item features that are also pooled over the history, e.g. the category. The sequence tower "
        "reads them with each item.",
    )
    leave_out: list[str] = Field(
        [],
        description="Features of users, items and requests that are in the samples but that this model does not use, e.g. for "
        "ablations.",
    )
    id_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Probability of replacing an id by index 1 in training, so that index 1 learns to represent new ids.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of zeroing an output of a hidden layer in training, in the MLPs of both towers. 0: off.",
    )
    history_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of hiding an item of the history in training, with its features, so that the user's vector "
        "does not depend on single items. 0: off.",
    )
    new_user_share: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of training rows that are shown as those of a new user, with the default id and no history, so "
        "that the model learns what to answer to new users. Not for the sequence tower. 0: off.",
    )
    context_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Probability of replacing all features of the request of a row by their defaults in training, so that the "
        "defaults learn to represent queries without a request (recommend, evaluate).",
    )
    item_item: ItemItemConfig | None = Field(
        ItemItemConfig(),
        description="Adds components for items that the same users took, which need no training; null: off. Also off without "
        "a history and with hashed item ids.",
    )

    @property
    def item_item_rank(self) -> int:
        """Components that the item-item part adds to vectors, where the features allow it; 0: it is off."""
        return (self.item_item.rank or self.dim) if self.item_item else 0


class StreamingConfig(StrictModel):
    """The streaming frequency estimator (Yi et al., RecSys 2019)."""

    alpha: float = Field(
        0.01, gt=0, le=1, description="Weight of the newest gap. A higher value follows changes faster and is noisier."
    )
    slots: PositiveInt = Field(
        262_144, description="Slots per hash function. With fewer slots than items, items share counts."
    )
    hashes: PositiveInt = Field(
        2, description="Hash functions. An item is miscounted only if it shares all of its slots."
    )
    initial_gap: float | None = Field(
        None,
        ge=1,
        description="Initial guess of the steps between two hits of an item; null: catalogue size / batch size.",
    )
    warm_up: bool = Field(
        True, description="Average the first gaps of a slot with equal weights. With only alpha = 0.01, a third of the "
        "initial guess would remain after 100 hits."
    )  # fmt: skip


class SelfSupervisionConfig(StrictModel):
    """A second loss, on the item tower only: pulls two views of an item together (Yao et al., 2021)."""

    weight: PositiveFloat = Field(0.1, description="Weight a in L_main + a L_self.")
    mask: Literal["random", "dropout", "complementary", "correlated"] = Field(
        "correlated",
        description="What each view hides. random: random fields; dropout: half of the values of multi-valued features; "
        "complementary: each view hides one half of the fields; correlated: as complementary, with fields of high mutual "
        "information in the same half.",
    )
    items: PositiveInt = Field(
        512, ge=2, description="Items per step, summed over all processes, drawn uniformly from the catalogue."
    )
    temperature: PositiveFloat = Field(0.1, description="Divides the cosines between views.")


class LossConfig(StrictModel):
    """The training objective."""

    kind: Literal["listwise", "pointwise", "hinge", "logistic"] = Field(
        "listwise",
        description="listwise: sampled softmax, the positive against all candidates; pointwise: binary cross entropy; "
        "hinge, logistic: pairwise, the positive against each candidate.",
    )
    temperature: PositiveFloat = Field(0.15, description="Divides the cosines, whose range is only [-1, 1].")
    learned_temperature: bool = Field(False, description="Also train the temperature, starting from `temperature`.")
    correction: Literal["none", "classic", "mns", "revisited"] = Field(
        "classic",
        description="logQ correction. Without it, popular items are pushed down because they are sampled often. pointwise, "
        "hinge and logistic: any value except none weights each shared candidate by 1 / expected count.",
    )
    lift: bool = Field(
        True,
        description="Add the log of each item's share of the positives to its logit in training. The vectors then learn how "
        "much likelier a user takes an item than everybody does (lift), and not popularity, which the recency prior adds in "
        "a release: log p(item | user) = lift + log p(item). Needs `prior`.",
    )
    frequencies: Literal["exact", "streaming"] = Field(
        "exact",
        description="Frequencies of in-batch positives. exact: counted in the samples; streaming: estimated from the batches.",
    )
    streaming: StreamingConfig = StreamingConfig()
    shared_negatives: PositiveInt | None = Field(
        None,
        description="Largest number of uniform and popularity negatives that a step compares its rows with. If its rows have "
        "more, a step uses this many of them. The in-batch positives come on top; null: all.",
    )
    margin: PositiveFloat = Field(
        1.0, description="For hinge, in logits: a difference of margin x temperature in cosines."
    )
    negatives_per_positive: PositiveFloat = Field(
        3.0, description="For pointwise: total weight of the negatives of a row. Its positive has weight 1."
    )
    hard_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="For pointwise, hinge and logistic: weight of a row's hard negatives in the mean over its negatives. The "
        "shared negatives have the rest, or 1 if the row has no hard negatives. listwise counts each hard negative once.",
    )
    hard_weight: PositiveFloat = Field(
        1.0, description="For listwise: weight of a hard negative in the softmax, whose positive has weight 1."
    )
    hard_temperature: PositiveFloat | None = Field(
        None,
        description="Divides the cosines of hard negatives instead of `temperature`, and that of the positive they are "
        "compared with. A higher one makes the hardest of them weigh less; null: `temperature`.",
    )
    hard_ramp: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Start and end as shares of a training, e.g. [0.3, 0.8]: the weight of hard negatives is 0 until the "
        "start and rises linearly to its full value at the end; null: full from the first step.",
    )
    hard_rows: Literal["own", "all"] = Field(
        "own",
        description="own: a hard negative is a negative of its row only; all: of all rows of the step, as easy ones are. "
        "`all` is for listwise, and not for correction: revisited.",
    )
    stage_weight: float = Field(
        0.2,
        ge=0,
        description="Weight of a second loss: each fine negative of a row should score above its coarse ones, because coarse "
        "ranking kept the former and dropped the latter. `hard_ramp` applies to it. Reads nothing where rows do not have both "
        "kinds; 0: off.",
    )
    top_k: PositiveInt | None = Field(
        None,
        description="For listwise: weight each positive by how far its score is above the user's K-th best score, estimated "
        "from the candidates (SL@K, KDD 2025). K is the number of items that matter, e.g. 50; null: equal weights.",
    )
    top_k_temperature: PositiveFloat = Field(
        1.0,
        description="For top_k: divides the distance from the K-th best cosine in the weight's sigmoid. A smaller value cuts "
        "off more sharply. The authors' code starts from 1.",
    )
    gbce_calibration: float = Field(
        0.0,
        ge=0,
        le=1,
        description="For pointwise: t of gBCE (gSASRec, RecSys 2023), which weakens the positive's part so that scores are "
        "not overconfident. 0: plain binary cross entropy; 1: calibrated probabilities; the authors' code uses 0.75.",
    )
    self_supervision: SelfSupervisionConfig | None = Field(
        None, description="A second loss on item features, which helps items with few clicks; null: off."
    )

    @field_validator("hard_ramp")
    @classmethod
    def _in_order(cls, ramp: list[float] | None) -> list[float] | None:
        if ramp and ramp[0] > ramp[1]:
            raise ValueError(f"the start, {ramp[0]}, is after the end, {ramp[1]}: swap them")
        return ramp


class TrainingConfig(StrictModel):
    """How training runs. These settings do not affect which checkpoints can be loaded."""

    batch_size: PositiveInt = Field(
        4096,
        description="Positives per step, summed over ALL processes. They are also the in-batch negatives. Packed rows are not "
        "split between steps, so with samples.pack it is the mean over the steps.",
    )
    epochs: PositiveInt = Field(
        1, description="Passes over the rows of a night. More than one pass quickly overfits ids."
    )
    bootstrap_epochs: PositiveInt | Literal["auto"] = Field(
        2,
        description="Passes on the first night, which trains a new model. auto: until the loss on the last "
        "positives.valid_hours stops falling; the model of the best epoch is kept.",
    )
    bootstrap_max_epochs: PositiveInt = Field(
        20, description="For auto: most passes. `schedule` is planned for this number, so use constant with a high one."
    )
    bootstrap_patience: PositiveInt = Field(
        1, description="For auto: stop after this many passes in a row that are no better than the best one."
    )
    optimizer: Literal["adamw", "adagrad"] = Field("adamw", description="Optimiser of the dense parameters.")
    learning_rate: PositiveFloat = Field(1e-3, description="Learning rate of the MLPs.")
    embedding_learning_rate: PositiveFloat = Field(
        5e-3, description="Learning rate of the embedding tables. Higher, because each row is updated in few steps."
    )
    warm_up_steps: int = Field(
        0,
        ge=0,
        description="Steps in which both learning rates rise linearly to their value: the first steps of Adam are noisy.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rates after the warm-up: constant, or decay to `final_rate_share`."
    )
    final_rate_share: float = Field(
        0.0, ge=0, lt=1, description="For linear and cosine: factor on both learning rates after the last step."
    )
    warm_start_scale: PositiveFloat = Field(
        0.3,
        description="Factor on both learning rates on nights that continue the model of the night before.",
    )
    weight_decay: float = Field(
        1e-5, ge=0, description="Of the MLPs only. On embeddings it would shrink rows that the night does not update."
    )
    embedding_weight_decay: float = Field(
        0.0,
        ge=0,
        description="Of the ids of items: a row that a step trains is multiplied by 1 - rate x decay / (1 + n), where n are "
        "the item's positives in units of those of the mean item. So features say more of items with few clicks. 0: off.",
    )
    embedding_rows_sparse: PositiveInt = Field(
        # Measured (2 cores, batch 2048, history 50, 8k candidates, dim 32): fused AdamW takes 18 ms per step at 100k rows
        # and 129 ms at 1M; SparseAdam takes 46 and 94 ms. They cross at about 400k.
        400_000,
        description="Embedding tables with at least this many rows use sparse gradients (SparseAdam or Adagrad).",
    )
    embedding_rows_sharded: PositiveInt | None = Field(
        None,
        description="Embedding tables with at least this many rows are sharded over the processes, with sparse gradients: for "
        "tables that do not fit in one process. No effect with one process; null: each process holds all tables.",
    )
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu",
        description="cuda: one GPU per process; auto: cuda if there is one, otherwise cpu. Not tested on a GPU yet.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Precision of the matrix products in the towers (autocast). Logits and losses stay in float32.",
    )
    gradient_clip: PositiveFloat = Field(
        10.0, description="Largest gradient norm. Larger gradients are scaled down to it."
    )
    processes: PositiveInt = Field(1, description="Training processes. Each reads its share of the row groups.")
    threads: PositiveInt | None = Field(None, description="Threads per process; null: cores divided by processes.")
    launcher: Literal["torchrun", "spark"] = Field(
        "torchrun",
        description="How several processes start. torchrun: on this machine; spark: barrier mode on the executors.",
    )
    checkpoint_steps: PositiveInt | None = Field(
        1000,
        description="Steps between two progress checkpoints. A killed training resumes from the last one; null: none.",
    )
    timeout_seconds: PositiveInt = Field(
        1800, description="Timeout of a collective operation, which waits for the slowest process."
    )
    shuffle_window: PositiveInt = Field(
        65_536,
        description="Positives that are shuffled together; with samples.pack, packed rows with about as many. The order of "
        "files is shuffled too.",
    )
    catalogue_memory_mb: PositiveInt = Field(
        4096, description="If item features take more memory (MiB), each process maps them from files instead."
    )
    reader_threads: PositiveInt = Field(2, description="Threads per process that decode Parquet.")
