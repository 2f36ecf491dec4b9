"""Recall@K of a model on judged users, computed in this process: cheap enough to run after every epoch.

The figures are those of jobs/evaluate.py: Recall@K over all live items, averaged over users. With a recency prior they are
those of the release that the night would publish: the prior is chosen on the held-out hours of the bootstrap.

Shapes: B users, M items, d vector length, H half-lives, G points of the grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyarrow import parquet as pq

from jobs.common.config import Config
from jobs.common.runner import Context
from jobs.inference.prior_grid import COUNTS, Grid
from jobs.night.steps import open_night
from jobs.release.heldout import events_of, held_out_since
from jobs.tuning.judged_users import Ints, JudgedUsers, pairs
from model.data.catalogue import Catalogue
from model.evaluation.prior_grid import Targets, choose, count_better, excluded_pairs, expected_point, grid_points
from model.evaluation.ranking_metrics import ranking_metrics, top_k
from model.evaluation.release_recall import HeldOutEvents, user_columns_of
from model.io.arrow import to_arrays
from model.io.urls import read_columns, resolve
from model.network.two_tower import TwoTower
from model.release_config import PriorConfig
from model.serving.embed import embed_items, embed_users, history_catalogue
from model.serving.recency_prior import bonus_of
from pipelines.half_life import predict
from pipelines.recency import recent_counts
from pipelines.storage.manifest import Recipe, digest

CELLS = 16_000_000  # scores in memory at once
FEW = 1000  # users and events that measure an epoch
RECENT = "recent_counts"


@dataclass(frozen=True)
class Items:
    """The live items, in the order of their indices."""

    files: Sequence[str]  # of item_features
    index_M: Ints

    def vectors(self, towers: TwoTower) -> np.ndarray:
        """[M, d]."""
        columns, parts, indices = list(dict.fromkeys(["item_index", *towers.schema.item_columns])), [], []
        for url in self.files:
            filesystem, path = resolve(url)
            with filesystem.open_input_file(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(65_536, columns=columns):
                    arrays = to_arrays(batch, url)
                    parts.append(embed_items(towers, arrays))
                    indices.append(arrays["item_index"])
        return np.concatenate(parts)[np.argsort(np.concatenate(indices))]


@dataclass(frozen=True)
class PriorData:
    """What a night chooses its recency prior from."""

    recent_MH: npt.NDArray[np.float64]  # counts at the end of the bootstrap
    before_MH: npt.NDArray[np.float64]  # counts before the held-out hours
    half_life: float  # the one that predicts the days of the window best
    events: HeldOutEvents | None


class Judge:
    """Measures models on the judged users, with the tables of one bootstrap."""

    def __init__(self, context: Context, users: JudgedUsers, k: int) -> None:
        """`context`: the tables. `k`: K of Recall@K."""
        self.context, self.users, self.k = context, users, k
        files = context.warehouse.data_files(context.warehouse.path("item_features", context.ds))
        self.items = Items(files, np.sort(read_columns(files, ["item_index"])["item_index"]).astype(np.int64))
        self._priors: dict[str, PriorData] = {}

    def recall(self, towers: TwoTower, config: Config, temperature: float, *, few: bool = False) -> np.ndarray:
        """Recall@K by user, [B]. `few`: only of about FEW users that judge trials, for the figure of an epoch."""
        chosen = np.arange(len(self.users))
        if few:
            judging = chosen[~self.users.checks_B]
            chosen = judging[:: math.ceil(len(judging) / FEW)]
        catalogue = history_catalogue(towers, self.items.files)
        vectors_Md = self.items.vectors(towers)
        bonus_M = self._bonus(towers, catalogue, vectors_Md, config, temperature, few)
        columns = {name: values[chosen] for name, values in self.users.columns.items()}
        users_Bd = embed_users(towers, user_columns_of(towers.schema, columns), catalogue)
        recalls, step = [], max(1, CELLS // len(vectors_Md))
        for start in range(0, len(chosen), step):
            part = slice(start, start + step)
            scores_BM = users_Bd[part] @ vectors_Md.T + bonus_M.astype(np.float32)
            recalls.append(self._recall_of(scores_BM, chosen[part]))
        return np.concatenate(recalls)

    def _recall_of(self, scores_BM: np.ndarray, users: Ints) -> np.ndarray:
        found = top_k(scores_BM, self.k, self._positions([self.users.excluded[user] for user in users]))
        targets = self._positions([self.users.targets[user] for user in users])
        recall: np.ndarray = ranking_metrics(found, targets, scores_BM.shape[1], [self.k])["recall"][:, 0]
        return recall

    def _positions(self, lists: list[Ints]) -> tuple[Ints, Ints]:
        """Items by user as pairs (user, position), without items that are not live."""
        rows, items = pairs(lists)
        places = np.minimum(np.searchsorted(self.items.index_M, items), len(self.items.index_M) - 1)
        live = self.items.index_M[places] == items
        return rows[live], places[live]

    def _bonus(
        self,
        towers: TwoTower,
        catalogue: Catalogue | None,
        vectors_Md: np.ndarray,
        config: Config,
        temperature: float,
        few: bool,
    ) -> npt.NDArray[np.float64]:
        """[M] what the recency prior adds to the score of each item."""
        prior = config.prior_in_use
        if prior is None:
            return np.zeros(len(vectors_Md))
        data, gates = self._prior_data(prior), config.gates
        points = grid_points(prior.beta, data.half_life)
        grid = Grid(points, prior.half_life_days, temperature, prior.unseen_count)
        point, events = expected_point(grid.points, config.expected_beta), data.events
        if events is not None and few:
            events = _first(events, FEW)
        if events is not None and events.users >= gates.least_users:
            taken_B = events.columns["item_index"].astype(np.int64)
            place_B = np.minimum(np.searchsorted(self.items.index_M, taken_B), len(vectors_Md) - 1)
            users_Bd = embed_users(towers, user_columns_of(towers.schema, events.columns), catalogue)
            bonus_GM = grid.bonus(data.before_MH)
            excluded = excluded_pairs(taken_B, events.excluded)
            targets = Targets(users_Bd, taken_B, vectors_Md[place_B], bonus_GM[:, place_B], excluded)
            better_GB = count_better(targets, self.items.index_M, vectors_Md, bonus_GM)
            hits_GB = (better_GB < gates.recall_at) & (self.items.index_M[place_B] == taken_B)
            point, _ = choose(
                grid.points, hits_GB, events.owners_B, gates.bootstrap_samples, config.seed, config.expected_beta
            )
        column = prior.half_life_days.index(point.half_life_days) if point.half_life_days else 0
        return bonus_of(data.recent_MH[:, column], point.beta, temperature, prior.unseen_count)

    def _prior_data(self, prior: PriorConfig) -> PriorData:
        key = digest([prior.half_life_days, prior.unseen_count])
        if key not in self._priors:
            context, since = self.context, held_out_since(self.context)
            warehouse, ds = context.warehouse, context.ds
            made = {table: warehouse.require(table, ds, "") for table in ("item_stats", "positives")}
            recipe = Recipe(key, {name: manifest.fingerprint for name, manifest in made.items()})
            existing = warehouse.manifest("item_priors", ds)
            if not existing or not existing.made_by(recipe):
                night, unseen = open_night(context), prior.unseen_count
                counts = recent_counts(night, prior.half_life_days, as_of=ds, since=since, unseen_count=unseen)
                warehouse.write(counts, "item_priors", ds, recipe)
            table = read_columns(
                warehouse.data_files(warehouse.path("item_priors", ds)), ["item_index", RECENT, COUNTS]
            )
            places = np.searchsorted(self.items.index_M, table["item_index"])
            by_item = np.zeros((2, len(self.items.index_M), len(prior.half_life_days)))
            by_item[0][places], by_item[1][places] = table[RECENT], table[COUNTS]
            prediction = predict(open_night(context), prior.half_life_days, prior.unseen_count, held_out=bool(since))
            events = events_of(context, since) if since else None
            self._priors[key] = PriorData(by_item[0], by_item[1], prediction.best, events)
        return self._priors[key]


def _first(events: HeldOutEvents, rows: int) -> HeldOutEvents:
    """The first events."""
    columns = {name: values[:rows] for name, values in events.columns.items()}
    owners = np.unique(events.owners_B[:rows], return_inverse=True)[1]
    return HeldOutEvents(columns, owners, events.excluded and events.excluded[:rows])
