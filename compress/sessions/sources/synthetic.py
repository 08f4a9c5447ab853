"""Sessions made from a known rule, so that tests know what can be learned.

A session has one topic. Each next click is

    with probability ``repeat``   an item of the session once more, newer ones more often
    with probability ``follow``   one of the two items that follow the last one, always the same two
    otherwise                     an item of the topic, popular ones more often

so there is something to be had of the session's own items, of what followed them in other
sessions, and of the session as a whole.
"""

from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from compress.config import Frozen
from compress.data.base import Tally, digest
from compress.sessions.data import SessionData, Sessions
from compress.sessions.sources.log import Count, Cut, Log, Share, data_set, split_newest

FIRST_FOLLOWER: Final = 0.75  # the share of the first of the two
NEWER: Final = 0.5  # how much less often each older item is repeated
_ITEMS, _SESSIONS = range(2)  # streams of the seed

Rows = NDArray[np.int64]


class SyntheticSessionsConfig(Cut):
    """Options of the source.

    Attributes:
        sessions: of all parts together.
        items: in the catalogue, if all are clicked.
        topics: every item is of one.
        mean_length: clicks of a session on average; none has fewer than two.
        max_length: clicks of the longest.
        repeat: share of the clicks that repeat an item of the session.
        follow: share of the clicks that follow from the last one.
        seed: of the rule and the sessions.
        test: the newest sessions, how many or which share of them.
    """

    sessions: int = Field(default=2000, ge=10)
    items: int = Field(default=200, ge=2)
    topics: int = Field(default=10, ge=1)
    mean_length: float = Field(default=6.0, ge=2.0)
    max_length: int = Field(default=30, ge=2)
    repeat: float = Field(default=0.25, ge=0.0, le=1.0)
    follow: float = Field(default=0.45, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)
    test: Count | Share = 0.1

    @model_validator(mode="after")
    def _consistent(self) -> "SyntheticSessionsConfig":
        if self.repeat + self.follow > 1.0:
            raise ValueError("repeat and follow are shares of the clicks: together 1 at most")
        if self.topics > self.items:
            raise ValueError("every topic has an item at least")
        return self


class SyntheticSessions:
    """Sessions by the rule."""

    Config: ClassVar[type[Frozen]] = SyntheticSessionsConfig

    def __init__(self, config: SyntheticSessionsConfig) -> None:
        self._config = config

    def parts(self, tally: Tally | None = None) -> SessionData:
        """Made anew at each call, always the same."""
        del tally  # no cell is bad
        config = self._config
        rng = np.random.default_rng([config.seed, _SESSIONS])
        spread = rng.geometric(1.0 / (config.mean_length - 1.0), config.sessions)
        lengths = np.minimum(1 + spread, config.max_length)
        clicks = self._clicks(rng, config.sessions, int(lengths.max()))  # (sessions, longest)
        held = np.arange(clicks.shape[1]) < lengths[:, None]
        ids = tuple(f"item{i + 1}" for i in range(config.items))
        sessions = Sessions.of(clicks[held].astype(np.int32), lengths, ids)
        places = np.arange(config.sessions)
        log = Log(sessions, places, places.astype(np.float64))
        return data_set(*split_newest(log, config.test, "test"), config)

    def fingerprint(self) -> str:
        """The config says it all."""
        return digest("synthetic-sessions", self._config.model_dump_json())

    def notice(self) -> None:
        """None: they are nobody's."""
        return

    def _clicks(self, rng: np.random.Generator, sessions: int, length: int) -> Rows:
        config, every = self._config, np.arange(sessions)
        followers = self._followers()
        topic = rng.integers(0, config.topics, sessions)
        clicks = np.empty((sessions, length), np.int64)
        clicks[:, 0] = self._of_topic(rng, topic)
        for t in range(1, length):
            way = rng.random(sessions)
            age = np.minimum(rng.geometric(NEWER, sessions), t)
            second = (rng.random(sessions) > FIRST_FOLLOWER).astype(np.int64)
            clicks[:, t] = np.select(
                [way < config.repeat, way < config.repeat + config.follow],
                [clicks[every, t - age], followers[clicks[:, t - 1], second]],
                self._of_topic(rng, topic),
            )
        return clicks

    def _followers(self) -> Rows:
        """(items, 2), of the same topic."""
        rng = np.random.default_rng([self._config.seed, _ITEMS])
        topic = np.arange(self._config.items) % self._config.topics
        return np.stack([self._of_topic(rng, topic, power=1.0) for _ in range(2)], axis=1)

    def _of_topic(self, rng: np.random.Generator, topic: Rows, power: float = 2.0) -> Rows:
        """An item of each topic; those of a topic stand ``topics`` rows apart."""
        items, topics = self._config.items, self._config.topics
        size = (items - topic + topics - 1) // topics
        place = np.floor(size * rng.random(len(topic)) ** power).astype(np.int64)
        return place * topics + topic
