"""MLServer: a custom handler of a model without a pool of workers.

The handler takes the body as it is. MLServer's own protocol (V2) would carry it as tensors, which
is another body and, for rows of mixed features, a dearer one.
"""

import sys

import orjson
import uvloop
from fastapi import Request, Response
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.handlers import custom_handler

from benchmarks.peers.scoring import load_rankers, rank_dict


class Ranking(MLModel):
    """Ranks candidates."""

    async def load(self) -> bool:
        """Load the rankers."""
        self._rankers = load_rankers()
        return True

    @custom_handler(rest_path="/rank")
    async def rank(self, request: Request) -> Response:
        """Rank on the event loop."""
        body = orjson.loads(await request.body())
        return Response(rank_dict(self._rankers, body), media_type="application/json")


async def serve(port: int, grpc_port: int, metrics_port: int) -> None:
    """Serve until told to stop."""
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        parallel_workers=0,
        gzip_enabled=False,
    )
    await MLServer(settings).start([ModelSettings(name="ranking", implementation=Ranking)])


if __name__ == "__main__":
    uvloop.run(serve(*map(int, sys.argv[1:])))
