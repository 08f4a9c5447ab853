"""Ray Serve: one replica behind one proxy, on a Ray of one core and this machine."""

import signal
import sys

import orjson
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.scoring import load_rankers, rank_dict


class Ranking:
    """Ranks candidates."""

    def __init__(self) -> None:
        self._rankers = load_rankers()

    async def __call__(self, request: Request) -> Response:
        """Rank on the replica's loop."""
        body = orjson.loads(await request.body())
        return Response(rank_dict(self._rankers, body), media_type="application/json")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1")
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    deployed = serve.deployment(
        num_replicas=1,
        max_ongoing_requests=100,  # requests wait in the replica: the router backs off otherwise
        logging_config=LoggingConfig(enable_access_log=False),
    )
    serve.run(deployed(Ranking).bind(), blocking=True)
