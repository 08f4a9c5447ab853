"""What a source of sessions is."""

from typing import ClassVar, Protocol

from compress.config import Frozen
from compress.data.base import Tally
from compress.sessions.data import SessionData


class SessionSource(Protocol):
    """A data set: registered in `SESSION_SOURCES`, configured by the ``[data]`` section."""

    Config: ClassVar[type[Frozen]]

    def parts(self, tally: Tally | None = None) -> SessionData:
        """The sessions to train on and the prefixes to judge by, cut by time.

        Args:
            tally: counts the rows left out for a bad cell.

        Raises:
            DataError: the data cannot be read, or nothing is left of a part; `BadCell` names row,
                column and value.
        """
        ...

    def fingerprint(self) -> str:
        """A hash over the data and over how it is read and split."""
        ...

    def notice(self) -> str | None:
        """Terms and origin that the user should be shown, if any."""
        ...
