"""Where sessions come from: a user's files of every shape, MovieLens, made-up ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from compress.config import ConfigError, Section, configure
from compress.data.base import BadCell, DataError, Tally
from compress.sessions.data import SessionData, Sessions
from compress.sessions.sources import SESSION_SOURCES
from compress.sessions.sources.base import SessionSource
from compress.sessions.sources.files import SessionFiles, SessionFilesConfig
from compress.sessions.sources.movielens import MovieLensSessions, MovieLensSessionsConfig
from compress.sessions.sources.synthetic import SyntheticSessions, SyntheticSessionsConfig
from tests.compress.data.conftest import origin
from tests.compress.sessions.test_data import judged, words

CLICKS = """\
session,item,time
s1,a,10
s2,b,11
s1,b,12
s1,a,13
s2,b,14
s3,c,15
s3,a,16
s4,a,17
s4,c,18
s5,a,19
s5,d,20
"""


def files(path: Path, **options: object) -> SessionFiles:
    """The source with these options."""
    return SessionFiles(SessionFilesConfig.model_validate({"train": str(path)} | options))


def write(path: Path, text: str) -> Path:
    """A file with this text."""
    path.write_text(text)
    return path


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """Five sessions, a row a click."""
    return write(tmp_path / "clicks.csv", CLICKS)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """The same, a row a session."""
    path = tmp_path / "lists.parquet"
    items = [["b", "b"], ["a", "b", "a"], ["c", "a"], ["a", "c"], ["a", "d"]]
    ends = [14, 13, 16, 18, 20]
    pl.DataFrame({"session_id": [2, 1, 3, 4, 5], "items": items, "end": ends}).write_parquet(path)
    return path


@pytest.fixture(params=sorted(SESSION_SOURCES))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> SessionSource:
    """A small one of each kind."""
    match request.param:
        case "sessions":
            path = write(tmp_path / "clicks.csv", CLICKS)
            return files(path, events={}, validation=1, test_newest=1)
        case "ml-100k-sessions":
            config = MovieLensSessionsConfig(cache=tmp_path / "cache", window=5)
            return MovieLensSessions(config, [origin("recbole", tmp_path)])
        case _:
            return SyntheticSessions(SyntheticSessionsConfig(sessions=100, items=20))


# --- what all sources hold to ----------------------------------------------------------------


def test_parts_name_items_by_one_catalogue(source: SessionSource) -> None:
    """Rows lie inside it, its ids are distinct, and every one is clicked before the test."""
    data = source.parts()

    ids = data.train.ids
    assert data.validation.sessions.ids == data.test.sessions.ids == ids
    assert len(set(ids)) == len(ids)
    before = np.concatenate([data.train.rows, data.validation.sessions.rows])
    before = np.concatenate([before, data.validation.targets])
    assert set(before) == set(range(len(ids)))


def test_every_part_has_something(source: SessionSource) -> None:
    """Sessions of two clicks at least, prefixes of one, and a target each."""
    data = source.parts()

    assert len(data.train)
    assert data.train.lengths.min() >= 2
    for prefixes in (data.validation, data.test):
        assert len(prefixes) == len(prefixes.sessions) == len(prefixes.owner)
        assert prefixes.sessions.lengths.min() >= 1


def test_reading_twice_gives_the_same(source: SessionSource) -> None:
    """Rows and fingerprint."""
    first, second = source.parts(), source.parts()

    assert np.array_equal(first.train.rows, second.train.rows)
    assert np.array_equal(first.test.targets, second.test.targets)
    assert source.fingerprint() == source.fingerprint()


def test_a_sources_options_are_checked_as_a_configs() -> None:
    """A mistyped one is told with the nearest right one."""
    section = Section.model_validate({"type": "sessions", "train": "x", "min_item_click": 5})

    with pytest.raises(ConfigError, match="did you mean 'min_item_clicks'"):
        configure(SESSION_SOURCES, section, "data")


# --- files -----------------------------------------------------------------------------------


def test_clicks_and_lists_make_the_same_sessions(clicks: Path, lists: Path) -> None:
    """In the order of their ends."""
    options = {"validation": 1, "test_newest": 1}

    one = files(clicks, events={}, **options).parts()
    other = files(lists, time="end", **options).parts()

    for data in (one, other):
        assert words(data.train) == ["aba", "bb", "ca"]
        assert judged(data.validation) == [("a", "c")]
        assert judged(data.test) == [("a", "?")]


def test_lists_without_a_time_are_in_the_order_of_the_rows(lists: Path) -> None:
    """As the published splits have them."""
    data = files(lists, validation=1, test_newest=1).parts()

    assert words(data.train) == ["bb", "aba", "ca"]


def test_validation_is_the_newest_before_the_test_and_is_not_trained_on(clicks: Path) -> None:
    """Its items stay in the catalogue: how much is held out does not change what is ranked."""
    data = files(clicks, events={}, validation=2, test_newest=1).parts()

    assert words(data.train) == ["aba", "bb"]
    assert judged(data.validation) == [("c", "a"), ("a", "c")]
    assert sorted(data.train.ids) == ["a", "b", "c"]


def test_a_share_of_the_sessions_can_be_held_out(clicks: Path) -> None:
    """Of those that are there: two of five, then one of three."""
    data = files(clicks, events={}, validation=0.4, test_newest=0.4).parts()

    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 2)


def test_the_test_can_begin_at_a_moment(clicks: Path) -> None:
    """Sessions that end then or later, none that was trained on."""
    data = files(clicks, events={}, validation=1, test_from=18).parts()

    assert judged(data.test) == [("a", "c"), ("a", "?")]


def test_a_silence_ends_a_users_session(tmp_path: Path) -> None:
    """A longer pause than it; the bootstrap draws users."""
    text = "who,item,time\n"
    text += "".join(f"u1,{i},{t}\n" for i, t in zip("abcd", (0, 30, 61, 62), strict=True))
    text += "u2,a,200\nu2,b,201\nu1,d,300\nu1,a,301\nu1,b,302\n"
    path = write(tmp_path / "a.csv", text)
    events = {"user": "who", "silence": 30}

    data = files(path, events=events, validation=1, test_newest=2).parts()

    assert words(data.train) == ["ab"]
    assert judged(data.validation) == [("c", "d")]
    assert judged(data.test) == [("a", "b"), ("d", "a"), ("da", "b")]
    assert data.test.owner.tolist() == [1, 0, 0]


def test_clicks_of_one_time_stay_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """Whatever their items."""
    rows = "".join(f"{s},{i},0\n" for s in "xyz" for i in "dbca")
    path = write(tmp_path / "a.csv", f"session,item,time\n{rows}")

    data = files(path, events={}, validation=1, test_newest=1).parts()

    assert words(data.train) == ["dbca"]


def test_filters_run_in_the_published_order(tmp_path: Path) -> None:
    """Short sessions go first, so their clicks do not count; then rare items; then by length."""
    words_ = ["e", "e", "ab", "abc", "cabab", "aee", "bac", "ba", "cab", "bab"]
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"session_id": range(10), "items": [list(word) for word in words_]})
    frame.write_parquet(path)

    data = files(path, min_item_clicks=3, max_length=4, validation=1, test_newest=1).parts()

    assert words(data.train) == ["ab", "abc", "bac", "ba"]  # "aee" became "a"
    assert judged(data.validation) == [("c", "a"), ("ca", "b")]
    assert judged(data.test) == [("b", "a"), ("ba", "b")]


def test_repeats_in_a_row_can_be_dropped(lists: Path) -> None:
    """Before the lengths are looked at; a repeat after another item stays."""
    data = files(lists, drop_repeats=True, validation=1, test_newest=1).parts()

    assert words(data.train) == ["aba", "ca"]


def test_a_file_of_prefixes_is_judged_as_it_is(lists: Path, tmp_path: Path) -> None:
    """Whatever min_prefix says of validation; strangers are unknown, as prefix and as target."""
    test = write(
        tmp_path / "test.tsv", "session_id\titems\ttarget\n9\ta z b\tc\n9\ta\tz\n7\tb b\tb\n"
    )

    data = files(lists, test=str(test), min_prefix=2, validation=4).parts()

    assert words(data.train) == ["bb"]
    assert judged(data.validation) == [("ab", "a")]
    assert judged(data.test) == [("a?b", "c"), ("a", "?"), ("bb", "b")]
    assert data.test.owner.tolist() == [0, 0, 1]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_lists_are_read_from_text_too(lists: Path, tmp_path: Path, suffix: str) -> None:
    """Cut at blanks, or at what the config says."""
    path = tmp_path / f"text{suffix}"
    frame = pl.read_parquet(lists).with_columns(pl.col("items").list.join("|"))
    if suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="," if suffix == ".csv" else "\t")
    options = {"validation": 1, "test_newest": 1}

    read = files(path, list_separator="|", **options).parts()

    assert words(read.train) == words(files(lists, **options).parts().train)


@pytest.mark.parametrize(
    "items", [[[1, 2], [2, 1], [1, 1]], [["1", "2"], ["2", "1"], ["1", "1"]],
              [[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]]]
)  # fmt: skip
def test_ids_of_any_type_become_the_same_strings(tmp_path: Path, items: list[object]) -> None:
    """As everywhere: 1, 1.0 and "1" are one item."""
    path = tmp_path / "a.parquet"
    pl.DataFrame({"session_id": [1, 2, 3], "items": items}).write_parquet(path)

    data = files(path, validation=1, test_newest=1).parts()

    assert data.train.ids == ("1", "2")


def test_a_folder_of_files_is_read_as_one(clicks: Path, tmp_path: Path) -> None:
    """In natural order; a session may go on in the next file."""
    head, *rows = CLICKS.splitlines(keepends=True)
    for name, part in (("day_2.csv", rows[:4]), ("day_10.csv", rows[4:])):
        (tmp_path / "days").mkdir(exist_ok=True)
        write(tmp_path / "days" / name, head + "".join(part))
    options = {"events": {}, "validation": 1, "test_newest": 1}

    cut, whole = files(tmp_path / "days", **options).parts(), files(clicks, **options).parts()

    assert words(cut.train) == words(whole.train)


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "value"), [("", None), ('"a  b"', "a  b")], ids=["missing", "an empty item"]
)
def test_a_bad_list_is_named_by_file_row_and_column(
    tmp_path: Path, cell: str, value: object
) -> None:
    """The header line is row 1."""
    path = write(tmp_path / "a.csv", f"session_id,items\n1,a b\n2,{cell}\n3,b a\n4,a b\n")

    with pytest.raises(BadCell) as caught:
        files(path, validation=1, test_newest=1).parts()

    error = caught.value
    assert (error.path, error.row, error.column, error.value) == (path, 3, "items", value)
    assert "expected a list of at least one item" in str(error)


@pytest.mark.parametrize(
    ("column", "row", "expected"),
    [("session", "", "an id"), ("item", "", "an id"), ("time", "noon", "a time")],
)
def test_a_bad_click_is_named_by_file_row_and_column(
    tmp_path: Path, column: str, row: str, expected: str
) -> None:
    """Wherever it stands."""
    cells = {"session": "s1", "item": "a", "time": "3"} | {column: row}
    path = write(tmp_path / "a.csv", CLICKS + ",".join(cells.values()) + "\n")

    with pytest.raises(BadCell, match=f"row 13: column '{column}': expected {expected}"):
        files(path, events={}, validation=1, test_newest=1).parts()


def test_bad_rows_can_be_left_out_and_counted(tmp_path: Path) -> None:
    """Lists and clicks, of the training and of the test."""
    train = write(tmp_path / "a.csv", "session_id,items\n1,a b\n2,\n3,b a\n4,a b\n")
    test = write(tmp_path / "t.csv", "session_id,items,target\n8,a,b\n8,a,\n,a,b\n")
    tally = Tally()

    data = files(train, test=str(test), validation=1, on_bad_cell="skip").parts(tally)

    assert words(data.train) == ["ab", "ba"]
    assert judged(data.test) == [("a", "b")]
    assert tally.rows == 3


def test_rows_of_prefixes_are_no_training_sessions(tmp_path: Path) -> None:
    """They would count a click many times over."""
    path = write(tmp_path / "a.csv", "session_id,items\n1,a\n1,a b\n2,b a\n")

    with pytest.raises(DataError, match="row 3: column 'session_id': expected a row for each"):
        files(path).parts()


def test_a_missing_column_is_told_with_the_nearest(lists: Path) -> None:
    """As everywhere."""
    with pytest.raises(DataError, match=r"no column 'item' \(nearest: 'items'\)"):
        files(lists, items="item").parts()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation": 4, "test_newest": 1}, "validation: the newest 4 of 4 sessions"),
        ({"test_newest": 0.01}, "test: the newest 0.01 of 5 sessions"),
        ({"min_item_clicks": 99}, "test: the newest 0.1 of 0 sessions"),
        ({"test_from": 99}, "the 5 sessions end from 13 to 20"),
        ({"min_prefix": 9, "validation": 1, "test_newest": 1}, "none of 1 sessions is longer"),
    ],
)
def test_a_part_that_would_be_empty_is_refused(
    clicks: Path, options: dict[str, object], said: str
) -> None:
    """With what there is and what was asked."""
    with pytest.raises(DataError, match=said):
        files(clicks, events={}, **options).parts()


@pytest.mark.parametrize("rows", ["", "1,,b\n"])
def test_a_test_without_rows_is_refused(lists: Path, tmp_path: Path, rows: str) -> None:
    """Whether it never had any, or all are bad."""
    test = write(tmp_path / "t.csv", f"session_id,items,target\n{rows}")

    with pytest.raises(DataError, match=r"t\.csv: no rows"):
        files(lists, test=str(test), validation=1, on_bad_cell="skip").parts()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"test": "x", "test_newest": 3}, "give one of test and test_newest"),
        ({"test_from": 3}, "test_from needs time"),
        ({"events": {}, "time": "t"}, "named by events.time"),
        ({"events": {"user": "u"}}, "user and silence go together"),
        ({"events": {"user": "u", "silence": 1, "session": "s"}}, "not both"),
        ({"validation": 0}, "validation"),
        ({"validation": 1.5}, "validation"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, object], said: str
) -> None:
    """Before anything is read."""
    with pytest.raises(ValidationError, match=said):
        SessionFilesConfig.model_validate({"train": "x"} | options)


def test_the_fingerprint_follows_bytes_and_options_but_not_the_place(
    clicks: Path, tmp_path: Path
) -> None:
    """A moved file is the same data; another filter is not."""
    moved = write(tmp_path / "moved.csv", CLICKS)
    changed = write(tmp_path / "changed.csv", CLICKS + "s9,a,9\n")

    first = files(clicks, events={}).fingerprint()

    assert files(moved, events={}).fingerprint() == first
    assert files(changed, events={}).fingerprint() != first
    assert files(clicks, events={}, min_length=3).fingerprint() != first
    assert files(clicks, events={}, test=str(moved)).fingerprint() != first


# --- MovieLens and made-up sessions ----------------------------------------------------------


def test_movielens_histories_are_cut_into_windows(tmp_path: Path) -> None:
    """Of at most so many films, in the order of the ratings; the bootstrap draws users."""
    config = MovieLensSessionsConfig(cache=tmp_path / "cache", window=5)

    data = MovieLensSessions(config, [origin("recbole", tmp_path)]).parts()

    # Three users, 33 or 34 ratings each: seven windows a user, newest last.
    assert data.train.lengths.max() == 5
    assert len(data.train) == 17
    assert set(data.train.ids) <= {"1", "2", "3", "4"}
    assert set(data.test.owner) <= {0, 1, 2}
    assert data.test.sessions.lengths.max() == 3  # the last windows are not full


def test_movielens_says_its_terms(tmp_path: Path) -> None:
    """The same as its ratings'."""
    config = MovieLensSessionsConfig(cache=tmp_path / "cache")

    assert "GroupLens" in MovieLensSessions(config, [origin("recbole", tmp_path)]).notice()


@pytest.fixture(scope="module")
def made() -> Callable[..., SessionData]:
    """Makes up sessions with some options."""

    def make(**options: float) -> SessionData:
        config = SyntheticSessionsConfig.model_validate({"sessions": 1500} | options)
        return SyntheticSessions(config).parts()

    return make


def follows(some: Sessions) -> float:
    """How often the commonest follower of an item follows it, on average over clicks."""
    pairs = np.stack([some.rows[:-1], some.rows[1:]])[:, np.diff(some.session_of) == 0]
    counts = np.zeros((some.items, some.items))
    np.add.at(counts, tuple(pairs), 1)
    return float(counts.max(1).sum() / counts.sum())


def test_made_up_sessions_repeat_as_often_as_asked(made: Callable[..., SessionData]) -> None:
    """And a few more by chance."""

    def repeated(share: float) -> float:
        return float(made(follow=0.0, repeat=share, topics=1).test.repeated.mean())

    assert repeated(0.0) < 0.1
    assert 0.5 < repeated(0.5) < 0.6
    assert made(repeat=1.0, follow=0.0).test.repeated.all()


def test_made_up_sessions_follow_as_often_as_asked(made: Callable[..., SessionData]) -> None:
    """So there is something to learn, and nothing where none was asked for."""
    assert follows(made(repeat=0.0, follow=0.9).train) > 0.55
    assert follows(made(repeat=0.0, follow=0.0).train) < 0.4


def test_made_up_sessions_keep_to_their_topic(made: Callable[..., SessionData]) -> None:
    """An item's topic is its number modulo the topics."""
    train = made(topics=7).train
    topics = np.array([int(id_.removeprefix("item")) - 1 for id_ in train.ids]) % 7

    assert all(len(set(topics[rows])) == 1 for rows in train)


def test_another_seed_makes_other_sessions(made: Callable[..., SessionData]) -> None:
    """The same seed the same ones."""
    first, again, other = (made(seed=seed).train for seed in (1, 1, 2))

    assert words(first) == words(again)
    assert words(first) != words(other)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"repeat": 0.6, "follow": 0.6}, "together 1 at most"), ({"topics": 9, "items": 3}, "topic")],
)
def test_made_up_sessions_refuse_what_cannot_be(options: dict[str, float], said: str) -> None:
    """Before anything is made."""
    with pytest.raises(ValidationError, match=said):
        SyntheticSessionsConfig.model_validate(options)


# --- the published splits --------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """What is known of a published split."""

    name: str
    min_prefix: int
    sessions: int
    prefixes: int
    judged: int
    owners: int
    items: int
    repeated: float


@pytest.mark.parametrize(
    "split",
    [
        Split("tmall", 1, 65_286, 351_268, 25_898, 1_027, 40_727, 0.454),
        Split("retailrocket", 2, 126_168, 433_648, 15_132, 4_735, 36_968, 0.382),
    ],
    ids=lambda split: split.name,
)
def test_the_published_splits_are_read_whole(shared_data: Path, split: Split) -> None:
    """The counts behind the published tables, whatever is held out."""
    folder = shared_data / split.name
    data = files(
        folder / "train_sessions.parquet",
        test=str(folder / "test.parquet"),
        min_prefix=split.min_prefix,
        validation=1000,
    ).parts()

    trained = int(np.maximum(data.train.lengths - split.min_prefix, 0).sum())
    assert len(data.train) == split.sessions - 1000
    assert trained + len(data.validation) == split.prefixes
    assert (len(data.test), len(np.unique(data.test.owner))) == (split.judged, split.owners)
    assert data.train.items == split.items
    assert data.test.repeated.mean() == pytest.approx(split.repeated, abs=5e-4)
    assert data.test.targets.min() >= 0
