"""Memory and times of the service over hundreds of thousands of requests of varying size.

    python -m benchmarks.soak store ml-100k@slim ml-100k@int8 ml-100k-sessions@coded
    python -m benchmarks.soak store ml-100k@slim --workers 2 --out build/soak/two

The real service, on one core, is kept busy by closed loops from another until it has answered
``--requests`` and ``--seconds`` have passed; each body is drawn anew, of 1 to 2,000 candidates by
ids, rows or columns, and of 0 to 60 items of a session. Each second every process's memory is read
from the kernel. Writes ``soak.md``, ``soak.json`` (all samples and histograms) and ``soak.png``.

Growth is judged in the second half of the run, by what processes allocated, to 1 % of it; the
exit status is 1 where memory grew, 3 where it cannot be told, and a longer run is needed.
"""

import argparse
import dataclasses
import json
import platform
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hdrh.histogram import HdrHistogram
from matplotlib.figure import Figure

from benchmarks.peers.report import markdown_table
from benchmarks.steady.bodies import FORMS, Mix
from benchmarks.steady.driving import closed
from benchmarks.steady.memory import Growth, Memory, growth, memory
from benchmarks.steady.service import asked, port_of, processes_of
from loadtest import histograms
from loadtest.server import unwind_when_told_to_end

STATUS: Final = {"flat": 0, "grew": 1, "unclear": 3}
MB: Final = 1e6
FEWEST_SAMPLES: Final = 100
KINDS: Final = Memory._fields


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory of each process at a moment.

    Attributes:
        seconds: since the load began.
        requests: answered by then.
    """

    seconds: float
    requests: int
    by_process: Mapping[str, Memory]


@dataclass(slots=True)
class Interval:
    """Times of the answers that came in some seconds from ``start``."""

    start: float
    times: HdrHistogram = field(default_factory=histograms.new)


class Watch:
    """Counts answers and keeps their times by interval, and meanwhile samples memory."""

    def __init__(self, processes: Mapping[str, int], interval_s: float) -> None:
        self.samples: list[Sample] = []
        self.intervals = [Interval(0.0)]
        self.requests = 0
        self._processes, self._interval_s = processes, interval_s
        self._begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the load began."""
        return time.perf_counter() - self._begun

    def answered(self, seconds: float) -> None:
        """Take in an answer."""
        self.requests += 1
        now = self.seconds
        if now >= self.intervals[-1].start + self._interval_s:
            self.intervals.append(Interval(now))
        histograms.record(self.intervals[-1].times, seconds)

    def sample(self, every_s: float, stop: threading.Event) -> None:
        """Sample until told to stop."""
        while not stop.wait(every_s):
            held = {name: memory(process) for name, process in self._processes.items()}
            self.samples.append(Sample(self.seconds, self.requests, held))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    add = parser.add_argument
    add("store", type=Path)
    add("models", nargs="+", metavar="NAME@ALIAS")
    add("--requests", type=int, default=200_000, help="to be answered at least")
    add("--seconds", type=float, default=600.0, help="to last at least")
    add("--workers", type=int, default=1)
    add("--connections", type=int, default=4, help="that wait for their answers")
    add("--sizes", default="1,2000", help="fewest and most candidates")
    add("--forms", default=",".join(FORMS), help="of candidates of click-through rankers")
    add("--cores", default="0,1", help="the service's, and last the generator's")
    add("--every", type=float, default=1.0, help="seconds between two looks at memory")
    add("--interval", type=float, default=10.0, help="seconds of a histogram")
    add("--alter", default="", help="what is else otherwise: see benchmarks.steady.altered")
    add("--out", type=Path, default=Path("build/soak/one"), help="folder of the report")
    options = parser.parse_args(argv)
    if options.seconds < FEWEST_SAMPLES * options.every:
        parser.error(f"--seconds below {FEWEST_SAMPLES} times --every: growth could not be told")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, write the report and tell the verdict; the process's exit status."""
    options = parse(argv)
    unwind_when_told_to_end()
    watch = soaked(options)
    grown = judged(watch.samples)
    write(options, watch, grown)
    return max((STATUS[each.word] for each in grown.values()), key=[0, 3, 1].index)


def soaked(options: argparse.Namespace) -> Watch:
    """What was seen of a service under load."""
    service = asked(options)
    low, high = (int(size) for size in options.sizes.split(","))
    mix = Mix(service.sources(high, options.forms.split(",")), (low, high), seed=1)
    alterations = options.alter.split(",") if options.alter else []
    settings = {"WORKERS": str(options.workers)}
    with service.serving(options.out / "service.log", settings, alterations) as server:
        watch, stop = Watch(processes_of(server.pid), options.interval), threading.Event()
        sampler = threading.Thread(target=watch.sample, args=(options.every, stop))
        sampler.start()

        def is_over() -> bool:
            return bool(watch.requests >= options.requests and watch.seconds >= options.seconds)

        try:
            closed(port_of(server.url), options.connections, mix.draw, watch.answered, is_over)
        finally:
            stop.set()
            sampler.join()
    return watch


def judged(samples: Sequence[Sample]) -> dict[str, Growth]:
    """Growth of what each process allocated."""
    done = [sample.requests for sample in samples]
    return {
        name: growth(done, [sample.by_process[name].anonymous / MB for sample in samples])
        for name in samples[0].by_process
    }


def write(options: argparse.Namespace, watch: Watch, grown: Mapping[str, Growth]) -> None:
    """The page, all that was seen, and the plot; the page on the terminal too."""
    page = report(options, watch, grown)
    (options.out / "soak.md").write_text(page)
    (options.out / "soak.json").write_text(json.dumps(seen(options, watch, grown)))
    draw(watch, options.out / "soak.png")
    print(page)
    print(f"{options.out}: soak.md, soak.json, soak.png")


def report(options: argparse.Namespace, watch: Watch, grown: Mapping[str, Growth]) -> str:
    """What came out, in words and tables."""
    last = watch.samples[-1]
    pooled = histograms.pooled(interval.times for interval in watch.intervals)
    rows = [
        {
            "process": name,
            "at 10 %": f"{each.tenth:.1f}",
            "at 50 %": f"{each.half:.1f}",
            "at the end": f"{each.end:.1f}",
            "gained in the second half": f"{each.second_half:+.2f}",
            "95 % interval": f"{each.low:+.2f} to {each.high:+.2f}",
            "flat up to": f"{each.allowed:.1f}",
            "": each.word,
        }
        for name, each in grown.items()
    ]
    held = [
        {"process": name, **{kind: f"{value / MB:.1f}" for kind, value in each._asdict().items()}}
        for name, each in last.by_process.items()
    ]
    total = {kind: sum(getattr(m, kind) for m in last.by_process.values()) for kind in KINDS}
    held.append({"process": "all", **{kind: f"{value / MB:.1f}" for kind, value in total.items()}})
    times = ", ".join(f"p{p:g} {histograms.ms(pooled, p):.2f}" for p in (50, 99, 99.9))
    return (
        f"{', '.join(options.models)}: {watch.requests:,} requests in {last.seconds:.0f} s, "
        f"{options.connections} connections, {options.workers} worker(s); ms: {times}, "
        f"longest {pooled.get_max_value() / 1e3:.0f}\n\n"
        f"Allocated, MB:\n\n{markdown_table(rows)}\n\nIn the end, MB:\n\n{markdown_table(held)}\n"
    )


def seen(options: argparse.Namespace, watch: Watch, grown: Mapping[str, Growth]) -> dict[str, Any]:
    """Everything as plain JSON; bytes, seconds, and histograms in HdrHistogram's own encoding."""
    return {
        "options": {name: str(value) for name, value in vars(options).items()},
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "requests": watch.requests,
        "growth_mb": {
            name: {**dataclasses.asdict(each), "word": each.word} for name, each in grown.items()
        },
        "samples": [dataclasses.asdict(sample) for sample in watch.samples],
        "intervals": [
            {"start": each.start, "times": histograms.encoded(each.times)}
            for each in watch.intervals
        ],
    }


def draw(watch: Watch, path: Path) -> None:
    """Memory of each process above, times by interval below."""
    # A bare Figure draws with Agg whatever the machine's default is, and leaves no global behind.
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    minutes = [sample.seconds / 60 for sample in watch.samples]
    for name in watch.samples[0].by_process:
        for kind, style in (("rss", ":"), ("private", "--"), ("anonymous", "-")):
            held = [getattr(s.by_process[name], kind) / MB for s in watch.samples]
            above.plot(minutes, held, style, label=f"{name}: {kind}")
    above.set_ylim(bottom=0)
    above.set_ylabel("MB")
    above.set_title(f"{watch.requests:,} requests of varying size")
    above.legend(fontsize=8)
    starts = [interval.start / 60 for interval in watch.intervals]
    for percentile in (50.0, 99.0):
        values = [histograms.ms(interval.times, percentile) for interval in watch.intervals]
        below.step(starts, values, where="post", label=f"p{percentile:g}")
    below.set_ylim(bottom=0)
    below.set_ylabel("ms")
    below.set_xlabel("minutes")
    below.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
