"""LitServe: one API process, one worker process, ZeroMQ between them."""

import sys
from typing import Any

import litserve
from starlette.responses import Response

from benchmarks.peers.scoring import load_rankers, rank_dict


class RankingAPI(litserve.LitAPI):
    """Ranks candidates; LitServe parses the body and hands it to the worker as a dict."""

    def setup(self, device: str) -> None:
        """Load the rankers in the worker."""
        del device
        self._rankers = load_rankers()

    def predict(self, x: dict[str, Any]) -> bytes:
        """Rank."""
        return rank_dict(self._rankers, x)

    def encode_response(self, output: bytes) -> Response:
        """JSON that is written already, so that the API process need not."""
        return Response(output, media_type="application/json")


if __name__ == "__main__":
    server = litserve.LitServer(
        RankingAPI(api_path="/rank"), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
