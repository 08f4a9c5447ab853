"""What sessions come to: encoded alone or several at once, and remembered for a while."""

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np

from model_store.arrays import Floats, Rows
from service import kernels
from service.catalogue import Catalogue, CatalogueScoring
from service.scorer import OrtEncoder, Ways

REMEMBERED: Final = 256  # sessions: the lists of one page come together, and have one session
REMEMBERED_BYTES: Final = 4 << 20  # of their products with codewords: of many codewords fewer
NO_ROWS: Final[Rows] = np.empty(0, np.intp)
NO_REPEATS: Final[Floats] = np.empty(0, np.float32)


class Encoded(NamedTuple):
    """What a session comes to, whatever is asked of it.

    Attributes:
        ways: to the next item.
        scoring: what its query gives items; None for a ranker without.
        loop: ranks known items by all that the session says, in one pass; None where it cannot.
    """

    ways: Ways
    scoring: CatalogueScoring | None
    loop: kernels.RankingLoop | None


class Encodings:
    """What sessions of a catalogue's rows come to, by these rows' bytes; the last are remembered.

    Threads ask beside the event loop: each operation on the dictionary is atomic.
    """

    def __init__(self, encoder: OrtEncoder, catalogue: Catalogue) -> None:
        self._encoder, self._catalogue = encoder, catalogue
        self._room = _room(catalogue)
        self._remembered: OrderedDict[bytes, Encoded] = OrderedDict()

    def __contains__(self, session: bytes) -> bool:
        return session in self._remembered

    def __len__(self) -> int:
        return len(self._remembered)

    def __call__(self, session: bytes) -> Encoded:
        """What a session comes to; raises as `OrtEncoder.encode`."""
        found = self._recalled(session)
        if found is None:
            vectors = self._catalogue.vectors(np.frombuffer(session, np.intp))
            found = self._encoded(session, self._encoder.encode(vectors[None])[0])
            self._remember(session, found)
        return found

    def prepare(self, sessions: Iterable[bytes]) -> None:
        """Encode those that are not remembered, all of one length at once.

        Raises:
            BadScores: one of them cannot be; the shorter ones are.
        """
        asked_for = {*sessions}
        if len(asked_for) > self._room:  # the first would be forgotten before it is asked for
            return
        unknown = [session for session in asked_for if self._recalled(session) is None]
        for _, alike in groupby(sorted(unknown, key=len), key=len):
            self._encode([*alike])

    def _encode(self, sessions: list[bytes]) -> None:
        rows = np.frombuffer(b"".join(sessions), np.intp)
        vectors = self._catalogue.vectors(rows)
        shape = (len(sessions), len(rows) // len(sessions), vectors.shape[1])
        encoded = self._encoder.encode(vectors.reshape(shape))
        for session, ways in zip(sessions, encoded, strict=True):
            self._remember(session, self._encoded(session, ways))

    def _encoded(self, session: bytes, ways: Ways) -> Encoded:
        if ways.query is None:
            return Encoded(ways, None, None)
        scoring = self._catalogue.scoring(ways.query)
        if ways.follow is not None:  # it adds to items that the session does not have
            return Encoded(ways, scoring, None)
        rows, repeats = np.frombuffer(session, np.intp), ways.repeat
        if repeats is None:
            rows, repeats = NO_ROWS, NO_REPEATS
        return Encoded(ways, scoring, scoring.loop(rows, repeats))

    def _recalled(self, session: bytes) -> Encoded | None:
        found = self._remembered.get(session)
        if found is not None:
            try:  # noqa: SIM105  `suppress` takes longer than what it is about
                self._remembered.move_to_end(session)
            except KeyError:
                pass  # another thread's session has pushed it out
        return found

    def _remember(self, session: bytes, found: Encoded) -> None:
        self._remembered[session] = found
        if len(self._remembered) > self._room:
            with suppress(KeyError):  # another thread may have taken the last
                self._remembered.popitem(last=False)


def _room(catalogue: Catalogue) -> int:
    """How many sessions are remembered."""
    parts = (catalogue.base.vectors, catalogue.fresh_vectors)
    each = sum(part.query_bytes for part in parts if part is not None)
    return max(1, min(REMEMBERED, REMEMBERED_BYTES // max(1, each)))
