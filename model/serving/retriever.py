"""The nearest items of a request, from a release alone: no Spark, no MLflow, no table of the warehouse.

A user's vector is computed when it is asked for and never stored: what the user did a minute ago counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from model.data.catalogue import Catalogue
from model.serving.coherence import check_parts, check_vocabularies, read_ids
from model.serving.embed import embed_users
from model.serving.faiss_index import load_index, search
from model.serving.release import INDEX, ITEMS, MODEL, VOCABULARIES, ReleaseError, open_release
from model.serving.request_encoder import RequestEncoder, RequestError
from model.serving.vocabulary import read_vocabularies
from model.training.checkpoint import load_checkpoint
from pipelines.contract.request_fields import RequestFields, VocabularyField


class Recommendation(NamedTuple):
    """Items of one request, best first; fewer than asked for where the release has no more."""

    item_ids: list[Any]
    scores: list[float]
    k: int  # How many were asked for.
    release_id: str  # The release that answered.


class Retriever:
    """A release in memory, ready to answer. Threads may share it."""

    def __init__(self, uri: str) -> None:
        """`uri`: the folder of a release, a local path or any URI that Arrow reads; its files are checked as they are read.

        Raises ReleaseError where the folder is no release, a file of it not what was published, or its parts do not belong
        together.
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
        worded = {
            field.vocabulary for field in self.fields if isinstance(field, VocabularyField) and field.buckets is None
        }
        vocabularies = read_vocabularies(self.release.files(VOCABULARIES), worded)
        check_vocabularies(self.release, schema, vocabularies)
        self._encoder = RequestEncoder(self.fields, schema, vocabularies)
        self._catalogue = None
        if self._model.history_features:
            pooled = {feature.name for feature in self._model.history_features} | {schema.item_id.name}
            unread = [feature.name for feature in schema.item if feature.name not in pooled]
            self._catalogue = Catalogue.read(schema.without(unread), items)
        self._ids = read_ids(self.release)
        self._index = load_index(self.release.files(INDEX)[0])
        check_parts(self.release, self._model, self._index, self._ids)

    def retrieve(
        self, requests: Sequence[Mapping[str, Any]], k: int = 100, exclude_seen: bool = False
    ) -> list[Recommendation]:
        """The k best items of each request. `exclude_seen`: without those of its history.

        A request is raw values by field (`fields`, docs/serving.md): features of the user as the users table has them, and
        `history`, ids of items with the newest last. Raises RequestError naming request, field, its type and what is expected.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise RequestError(f"k is {k!r}, expected a whole number of at least 1")
        if not requests:
            return []
        columns, had = self._encoder.encode(requests)
        vectors = embed_users(self._model, columns, self._catalogue)
        scores, items = search(self._index, vectors, min(k, self._index.ntotal), had if exclude_seen else None)
        return [
            Recommendation(self._ids.ids_of(row[row >= 0]), best[row >= 0].tolist(), k, self.release.release_id)
            for row, best in zip(items, scores)
        ]
