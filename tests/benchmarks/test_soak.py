"""What the soak judges, and what it refuses."""

import pytest

from benchmarks import soak
from benchmarks.steady.memory import Memory


def test_growth_of_each_process_is_judged_by_what_it_allocated() -> None:
    """Pages of files come and go with what else the machine does."""
    samples = [
        soak.Sample(
            float(n), 100 * n, {"worker": Memory(10**9 * n, 10**9 * n, 10**9 * n, 80_000_000)}
        )
        for n in range(1, 201)
    ]

    assert soak.judged(samples)["worker"].word == "flat"


def test_run_too_short_to_tell_is_refused(capsys) -> None:
    """Before it runs."""
    with pytest.raises(SystemExit):
        soak.parse(["store", "m@a", "--seconds", "50"])

    assert "growth could not be told" in capsys.readouterr().err
