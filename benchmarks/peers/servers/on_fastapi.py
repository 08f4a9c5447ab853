"""A plain FastAPI endpoint over ONNX Runtime, with pydantic for the body."""

import sys

import uvicorn
from fastapi import FastAPI, HTTPException, Response

from benchmarks.peers.scoring import load_rankers
from benchmarks.peers.servers.body import Body, rank_body

RANKERS = load_rankers()
app = FastAPI()


@app.post("/rank")
async def rank(body: Body) -> Response:
    """Rank on the event loop: with one core, a thread would only add switches."""
    try:
        content = rank_body(RANKERS, body)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return Response(content, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
