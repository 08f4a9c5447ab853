"""KServe's Python server: its V1 protocol hands a model any JSON object, parsed by orjson."""

import logging
import sys
from typing import Any

import kserve

from benchmarks.peers.scoring import load_rankers, rank_dict


class Ranking(kserve.Model):
    """Ranks candidates."""

    def load(self) -> bool:
        """Load the rankers."""
        self._rankers = load_rankers()
        self.ready = True
        return True

    async def predict(self, payload: dict[str, Any], *_: Any, **__: Any) -> bytes:
        """Rank on the event loop; bytes go out as they are."""
        return rank_dict(self._rankers, payload)


if __name__ == "__main__":
    ranking = Ranking("ranking")
    ranking.load()
    server = kserve.ModelServer(
        http_port=int(sys.argv[1]),
        workers=1,
        enable_grpc=False,
        enable_latency_logging=False,
        event_loop="uvloop",
    )
    # KServe has no switch for its lines a request: uvicorn's, and two of its own timing.
    for name in ("uvicorn.access", "kserve.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    server.start([ranking])
