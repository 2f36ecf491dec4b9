"""Answers requests from a release, without Spark, MLflow or the warehouse.

User vectors are computed for each request and never stored, so that recent events in the history count at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from model.serving.coherence import check_parts, check_vocabularies, read_ids
from model.serving.embed import embed_users, history_catalogue
from model.serving.faiss_index import load_index, search
from model.serving.release import INDEX, ITEMS, MODEL, VOCABULARIES, ReleaseError, open_release
from model.serving.request_encoder import RequestEncoder, vocabularies_of
from model.serving.request_values import RequestError
from model.serving.vocabulary import read_vocabularies
from model.training.checkpoint import load_checkpoint
from pipelines.contract.request_fields import RequestFields


class Recommendation(NamedTuple):
    """Items for one request, best first; fewer than `k` if the release has no more."""

    item_ids: list[Any]
    scores: list[float]
    k: int  # Number of items requested.
    release_id: str


class Retriever:
    """Loads a release into memory and answers requests. Safe to share between threads."""

    def __init__(self, uri: str) -> None:
        """`uri`: the folder of a release, a local path or any URI that Arrow reads. Its files are checked as they are read.

        Raises ReleaseError if the folder is not a release, if a file differs from what was published, or if the parts do
        not belong together.
        """
        self.release = open_release(uri)
        manifest = self.release.manifest
        if "request" not in manifest:
            raise ReleaseError(
                f"release {self.release.release_id} does not say what a request holds: an earlier version wrote it. Publish "
                f"it again (jobs.publish_items --ds {manifest['ds']} --force)"
            )
        self.release.files(MODEL)
        self._model = load_checkpoint(f"{self.release.uri}/{MODEL}")
        schema, items = self._model.schema, self.release.files(ITEMS)
        self.fields = RequestFields.validate_python(manifest["request"])
        names = vocabularies_of(self.fields)
        vocabularies = read_vocabularies(self.release.files(VOCABULARIES), names)
        check_vocabularies(self.release, schema, vocabularies)
        self._encoder = RequestEncoder(self.fields, schema, vocabularies)
        self._catalogue = history_catalogue(self._model, items)
        self._ids = read_ids(self.release)
        self._index = load_index(self.release.files(INDEX)[0])
        check_parts(self.release, self._model, self._index, self._ids)

    def retrieve(
        self, requests: Sequence[Mapping[str, Any]], k: int = 100, exclude_seen: bool = False
    ) -> list[Recommendation]:
        """The k best items for each request. `exclude_seen`: leave out the items in its history.

        A request maps field names to raw values (`fields`, docs/serving.md): features of the user as in the users table,
        and `history`, item ids with the newest last. Raises RequestError that names request, field, type and expectation.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise RequestError(f"k is {k!r}, expected a whole number of at least 1")
        if not requests:
            return []
        columns, known_items = self._encoder.encode(requests)
        vectors = embed_users(self._model, columns, self._catalogue)
        excluded = known_items if exclude_seen else None
        scores, items = search(self._index, vectors, min(k, self._index.ntotal), excluded)
        return [
            Recommendation(self._ids.ids_of(row[row >= 0]), row_scores[row >= 0].tolist(), k, self.release.release_id)
            for row, row_scores in zip(items, scores)
        ]
