"""The session line's reports: all of the cards, nothing fetched, only like beside like."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compress.__main__ import app
from compress.sessions import compare, report
from compress.sessions.compare import comparable, markdown, size, write
from compress.sessions.entries import Estimate, ReportError, distinct, entries, told_apart
from compress.sessions.metrics import METRICS
from compress.sessions.plots import frontier
from model_store.bundle import Bundle, seal
from model_store.manifest import Resources, SessionCard, SessionQuality, SessionSeed
from tests.compress.sessions.bundles import session_bundle

Sealed = Callable[[SessionCard], Bundle]
CURVES = {
    "train": [
        {"epoch": 0, "loss": None, "hit": 0.1, "mrr": 0.1, "ndcg": 0.1, "seconds": 0.0},
        {"epoch": 1, "loss": 3.0, "hit": 0.5, "mrr": 0.3, "ndcg": 0.4, "seconds": 1.0},
    ],
    "finetune": [{"epoch": 0, "loss": None, "hit": 0.4, "mrr": 0.2, "ndcg": 0.3, "seconds": 0.0}],
}
UNTOLD = Resources(flops=0)
BARE = SessionQuality(metrics={"NDCG@10": 0.4}, rows=900, sessions=200)
# Cards that lack something, each another thing.
LACKING: dict[str, dict[str, Any]] = {
    "no time": {"us": None},
    "no ratio": {"achieved": {}},
    "no floors": {"floors": {}},
    "no bytes": {"dense": UNTOLD, "coded": UNTOLD},
    "no config": {"config": {}},
    "no hit": {"teacher": (0.0,), "student": (0.1,), "achieved": {}},
    "one metric": {
        "results": (SessionSeed(seed=1, dense=BARE, coded=BARE),),
        "floors": {"own-items": BARE},
        "achieved": {},
    },
    "one seed without intervals": {
        "results": (
            SessionSeed(seed=1, dense=BARE, coded=BARE),
            SessionSeed(seed=2, dense=BARE, coded=BARE.model_copy(update={"metrics": {}})),
        )
    },
}


def quality(level: float, *, spread: float = 0.02, rows: int = 900) -> SessionQuality:
    """Every metric at a level, better on repeated targets than on new ones."""
    return SessionQuality(
        metrics=dict.fromkeys(METRICS, level),
        intervals=dict.fromkeys(METRICS, (level - spread, level + spread)),
        repeated=dict.fromkeys(METRICS, level + 0.2),
        new=dict.fromkeys(METRICS, level - 0.1),
        rows=rows,
        sessions=200,
    )


def session_card(
    table: str = "rq",
    student: Sequence[float] = (0.39, 0.41),
    teacher: Sequence[float] = (0.4, 0.42),
    *,
    us: float | None = 50.0,
    table_bytes: int = 500,
    **changed: Any,
) -> SessionCard:
    """A card of made-up figures, a seed a level."""
    levels = zip(teacher, student, strict=True)
    made: dict[str, Any] = {
        "ranker": "sasrec",
        "table": table,
        "seed": 1,
        "results": tuple(
            SessionSeed(seed=seed, dense=quality(a), coded=quality(b))
            for seed, (a, b) in enumerate(levels, 1)
        ),
        "dense": Resources(
            flops=256,
            flops_parts={"candidate": 256},
            bytes={"item table": 9000, "item ids": 300, "graph": 700},
            parameters=3000,
            us_per_request=100.0,
        ),
        "coded": Resources(
            flops=8,
            flops_parts={"candidate": 8, "sub-scores, once a request": 4096},
            bytes={"item table": table_bytes, "item ids": 300, "graph": 700},
            parameters=400,
            us_per_request=us,
        ),
        "achieved": {
            "table compression": 9000 / table_bytes,
            "items that share all their codes": 3.0,
            "code usage": 0.853,
            "NDCG@10 ratio": 0.976,
            "NDCG@10 ratio, low": 0.95,
            "NDCG@10 ratio, high": 1.01,
            "speedup": 2.0,
        },
        "floors": {"own-items": quality(0.3)},
        "config": {"table": {"type": table, "codes": "8x256"}},
        "data_hash": "d" * 64,
        "tools": {"torch": "2"},
        "notes": ("a note",),
    }
    return SessionCard(**(made | changed))


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    """Seals a bundle with curves under a card."""

    def seal_it(card: SessionCard) -> Bundle:
        root = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        made = session_bundle(root, ["a", "b"])
        (root / "history.json").write_text(json.dumps(CURVES))
        return seal(root, made.manifest.model_copy(update={"card": card}))

    return seal_it


def labels(cards: Sequence[SessionCard]) -> list[str]:
    """What the cards' rankers are called."""
    return [entry.label for entry in entries(cards)]


def test_the_page_fetches_nothing(sealed: Sealed):
    """No script, no link, no image but inlined ones: it opens offline."""
    html = report.page(sealed(session_card()))

    assert not re.search(r"<(script|link|img)\b", html)
    assert not re.search(r"url\(\s*['\"]?http", html)
    assert html.count("<svg") == 4


def test_the_page_says_all_of_the_card(sealed: Sealed):
    """Names, figures, hashes, tools, notes and the config are there to be read."""
    bundle = sealed(session_card())

    html = report.page(bundle)

    for text in ("sasrec", "rq 8x256", "own-items", "d" * 64, "a note", "torch 2", bundle.digest):
        assert text in html
    assert "means over 2 seeds, 900 test prefixes of 200 sessions" in html
    assert "&#34;codes&#34;: &#34;8x256&#34;" in html


@pytest.mark.slow
def test_the_same_bundle_gives_the_same_page(sealed: Sealed, tmp_path: Path):
    """No clock and no chance in it, so that reports can be compared; folders are made."""
    bundle, path = sealed(session_card()), tmp_path / "deep" / "page.html"

    write([bundle], path)

    assert path.read_text() == report.page(bundle)


@pytest.mark.slow
def test_names_are_text_and_no_markup(sealed: Sealed):
    """A card comes from a file: what stands in it closes no tag and starts no formula."""
    hostile = "--><script>$x^$</script>"
    card = session_card(
        hostile,
        ranker=hostile,
        floors={hostile: quality(0.3)},
        notes=(hostile,),
        tools={hostile: hostile},
        config={"table": {"codes": hostile}},
        data_hash=hostile,
    )
    bundles = [sealed(card), sealed(session_card(data_hash=hostile))]

    pages = report.page(bundles[0]), compare.page(bundles)

    assert not any("<script" in page for page in pages)


@pytest.mark.parametrize("lacking", LACKING.values(), ids=LACKING)
def test_what_a_card_lacks_is_left_out(sealed: Sealed, lacking: dict[str, Any]):
    """A figure that was not measured costs its own place, not the page."""
    assert_whole(report.page(sealed(session_card(**lacking))))


@pytest.mark.slow
def test_what_some_cards_lack_is_left_out_of_the_comparison(sealed: Sealed):
    """It costs no other card its figures."""
    cards = [session_card(**lacking) for lacking in LACKING.values()]

    assert_whole(compare.page([sealed(card) for card in cards]))


def assert_whole(html: str) -> None:
    """Nothing stopped the page, or stands in it as Python would write it."""
    assert "</html>" in html
    assert not re.search(r">\s*(nan|None)\b", html)


def test_a_bundle_that_was_not_judged_has_a_page(sealed: Sealed):
    """Floors and costs can be told before there are results."""
    html = report.page(sealed(session_card(results=(), achieved={})))

    assert "<h2>By seed</h2>" not in html
    assert "own-items" in html


def test_quality_is_the_mean_over_seeds_with_its_interval():
    """0.39 and 0.41 make 40 %; bounds are averaged; the ratio is the card's or that of means."""
    card = session_card()
    rows = dict(report.quality_rows(card, entries([card])))

    floor, dense, coded, kept = rows["NDCG@10"]
    assert (floor.text, dense.text, coded.text) == ("30.00", "41.00", "40.00")
    assert coded.note == "[38.00, 42.00]"
    assert (kept.text, kept.note) == ("0.976", "[0.950, 1.010]")
    assert (rows["P@5"][-1].text, rows["P@5"][-1].note) == ("0.976", "")


def test_repeated_and_new_targets_are_told_apart():
    """The first three figures are of repeated targets, the others of new ones."""
    rows = dict(report.split_rows(entries([session_card()])))

    assert [cell.text for cell in rows["rq 8x256"]] == ["60.00"] * 3 + ["30.00"] * 3


def test_costs_stand_side_by_side():
    """The largest part leads; the whole bundle and the time follow."""
    rows = {row.what: row for row in report.costs(session_card())}

    assert next(iter(rows)) == "bytes: item table"
    assert rows["bytes of the whole bundle"].dense == "10,000"
    assert rows["bytes of the whole bundle"].change == "15.0%"
    assert rows["µs a request"].change == "2.00x the speed"


def test_the_coded_table_is_described():
    """Use of the codes and collisions stand there, ratios of quality elsewhere."""
    assert report.codes(session_card()) == [
        ("table compression", "18.00x"),
        ("items that share all their codes", "3"),
        ("code usage", "85.3% of the entropy of equal use"),
    ]


def test_the_words_of_a_run_tell_what_there_is():
    """A line a ranker, then what was achieved."""
    said = list(report.lines(session_card()))

    assert said[0].split() == list(report.SHOWN)
    assert said[1].split() == ["own-items", *["30.00"] * 6]
    assert said[3].split() == ["rq", *["40.00"] * 6]
    assert said[-1] == "speedup: 2"


def test_a_teacher_and_a_floor_are_listed_once():
    """Runs that share them repeat their figures."""
    assert labels([session_card("rq"), session_card("pq")]) == [
        "own-items",
        "uncompressed",
        "rq 8x256",
        "pq 8x256",
    ]


def test_each_teacher_is_followed_by_its_tables():
    """Names say whose a table is once there are several teachers."""
    cards = [
        session_card(),
        session_card(ranker="stamp", teacher=(0.3, 0.3)),
        session_card("pq"),
    ]

    assert labels(cards)[1:] == [
        "sasrec, uncompressed",
        "sasrec, rq 8x256",
        "sasrec, pq 8x256",
        "stamp, uncompressed",
        "stamp, rq 8x256",
    ]


def test_a_run_counts_once_though_both_its_bundles_hold_its_card():
    """Costs are no part of what tells runs apart: the second bundle's may be a byte off."""
    card, other = session_card(), session_card("pq")

    assert distinct([card, card.model_copy(update={"coded": UNTOLD}), other]) == [card, other]


def test_equal_names_show_in_what_they_differ():
    """Options that all share stay unsaid; what differs in nothing is counted."""
    options = [{"beam": 8, "rounds": 4}, {"beam": 9, "rounds": 4}, {}, {}, {}]

    assert told_apart(["rq", "rq", "pq", "pq", "qr"], options) == [
        "rq, beam 8",
        "rq, beam 9",
        "pq",
        "pq #2",
        "qr",
    ]


def test_times_of_several_runs_are_put_on_one_scale():
    """A table's time is its own run's ratio of the median of its teacher's times."""
    slow = session_card("pq", us=100.0)
    slow = slow.model_copy(
        update={"dense": slow.dense.model_copy(update={"us_per_request": 200.0})}
    )

    _, teacher, rq, pq = entries([session_card(us=50.0), slow])

    assert (teacher.us, rq.us, pq.us) == (150.0, 75.0, 75.0)
    assert (rq.speed, pq.speed) == (2.0, 2.0)


def test_a_time_without_its_teachers_is_told_as_it_is():
    """There is no ratio to put it on a scale by."""
    card = session_card(us=50.0)
    card = card.model_copy(update={"dense": UNTOLD})

    assert (entries([card])[2].us, entries([card])[2].speed) == (50.0, None)


def test_the_frontier_is_what_nothing_beats():
    """As cheap and better beats; dearer and no better is beaten."""
    points = [(3.0, 5.0), (1.0, 2.0), (2.0, 1.0), (1.0, 1.5), (4.0, 5.0)]

    assert frontier(points) == [(1.0, 2.0), (3.0, 5.0)]
    assert frontier([]) == []


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (4752, "4.75 kB"), (110_587, "111 kB")],
)
def test_sizes_have_three_digits(number: int | None, text: str):
    """Bytes below a thousand are told in full."""
    assert size(number) == text


def test_the_markdown_table_has_a_line_a_ranker():
    """Bars in names are escaped, so that a name is one cell."""
    text = markdown(entries([session_card("r|q")]))

    rows = text.splitlines()
    assert rows[1] == "|---" * 12 + "|"
    assert rows[-1].startswith(
        r"| r\|q 8x256 | 1.50 kB | 500 B | 18.0x | 50 | 2.00x | 40.00 [38.00"
    )
    assert len(rows) == 5


def test_a_ratio_without_interval_is_told_without():
    """What was compared but not drawn from has no bounds."""
    assert entries([session_card(achieved={})])[2].ratios["P@20"] == Estimate(
        pytest.approx(0.4 / 0.41)
    )


@pytest.mark.parametrize(
    ("suffix", "start"), [("md", b"| table |"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_the_files_name_says_what_is_written(
    sealed: Sealed, tmp_path: Path, suffix: str, start: bytes
):
    """A table for a page of Markdown, a picture for any page."""
    path = tmp_path / f"compared.{suffix}"

    write([sealed(session_card()), sealed(session_card("pq"))], path)

    assert path.read_bytes().startswith(start)


def test_another_file_name_is_refused(sealed: Sealed, tmp_path: Path):
    """The right ones are listed."""
    with pytest.raises(ReportError, match=r"ends in \.html, \.md, \.png, \.svg, not in '\.pdf'"):
        write([sealed(session_card())], tmp_path / "page.pdf")


def test_a_picture_of_nothing_is_refused(sealed: Sealed, tmp_path: Path):
    """Without bytes and times there are no axes."""
    with pytest.raises(ReportError, match="neither bytes nor times"):
        write([sealed(session_card(dense=UNTOLD, coded=UNTOLD))], tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data_hash": "e" * 64}, "data hash eeeeeeeeeeee, not dddddddddddd"),
        (
            {"results": (SessionSeed(seed=1, dense=quality(0.4, rows=8), coded=quality(0.4)),)},
            "test prefixes 8, 900, not 900",
        ),
        ({"results": ()}, "was not judged"),
    ],
)
def test_bundles_judged_otherwise_are_refused(sealed: Sealed, other: dict[str, Any], said: str):
    """Figures of other test prefixes stand on no common axis."""
    bundles = [sealed(session_card()), sealed(session_card(**other))]

    with pytest.raises(ReportError, match=said):
        comparable(bundles)


def test_a_mixture_of_lines_is_refused(sealed: Sealed, exported: Bundle):
    """A click-through ranker's AUC compares with no NDCG."""
    with pytest.raises(ReportError, match="only session rankers are compared"):
        comparable([sealed(session_card()), exported])


def command(*args: str | Path) -> str:
    """What `report` prints."""
    result = CliRunner().invoke(app, ["report", *map(str, args)], catch_exceptions=False)
    return result.stdout.strip()


@pytest.mark.slow
def test_the_command_compares_several_bundles(sealed: Sealed, tmp_path: Path):
    """One page for all of them."""
    bundles, path = [sealed(session_card(name)) for name in ("rq", "pq")], tmp_path / "page.html"

    assert command(*(bundle.root for bundle in bundles), "-O", path) == str(path)
    assert "2 compressed item tables of sasrec" in path.read_text()


@pytest.mark.slow
def test_the_command_knows_both_lines(sealed: Sealed, exported: Bundle, tmp_path: Path):
    """One bundle's page is its own line's."""
    for bundle, said in ((exported, "slimmed by umec"), (sealed(session_card()), "rq 8x256")):
        path = tmp_path / "page.html"

        command(bundle.root, "-O", path)

        assert said in path.read_text()
