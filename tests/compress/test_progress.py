"""Progress: what a person sees on a terminal, and what a log gets."""

import io

from rich.console import Console

from compress.progress import LINE_EVERY_S, Lines, terminal


def test_a_log_gets_a_line_at_the_start_at_the_end_and_now_and_then():
    """Not one for every step: a log of thousands of lines is read by nobody."""
    written: list[str] = []
    seconds = iter([0.0, 1.0, LINE_EVERY_S + 1, LINE_EVERY_S + 2, LINE_EVERY_S + 3])
    lines = Lines(written.append, clock=lambda: next(seconds))

    for done in (1, 2, 3, 4):
        lines.step("train", done, 5, loss=0.5)
    lines.step("train", 5, 5, rows_s=12345.6)

    assert written == [
        "train: 1 of 5  loss 0.5\n",
        "train: 3 of 5  loss 0.5\n",
        "train: 5 of 5  rows_s 12,346\n",
    ]


def test_each_stage_has_its_own_lines():
    """A second stage is announced at once; an unknown total is left out."""
    written: list[str] = []
    lines = Lines(written.append, clock=lambda: 0.0)

    lines.step("read", 7, None)
    lines.step("train", 0, 9)

    assert written == ["read: 7\n", "train: 0 of 9\n"]


def test_bars_are_for_terminals():
    """On a terminal a stage is a bar with its numbers."""
    screen = io.StringIO()

    with terminal(Console(file=screen, force_terminal=True, width=120)) as progress:
        progress.step("train", 1, 2, rows_s=5000)

    assert "rows_s 5,000" in screen.getvalue()


def test_no_escape_codes_reach_a_log(capsys):
    """Piped output is plain text, line by line."""
    with terminal(Console(file=io.StringIO())) as progress:
        progress.step("train", 1, 2, rows_s=5000)

    assert capsys.readouterr().err == "train: 1 of 2  rows_s 5,000\n"
