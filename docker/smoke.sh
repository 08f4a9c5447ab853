#!/usr/bin/env bash
# `make docker-smoke`: builds the images, brings the composition up from nothing, asks /rank with
# Redis, without it and with it again, and takes everything down. Prints what it saw.
#
# Where no Docker engine answers and ../shared/tools/docker-here exists, that starts one.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'docker-smoke: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

if ! docker info >/dev/null 2>&1; then
  [[ -f ../shared/tools/docker-here ]] || fail "no Docker engine answers; start one and try again"
  bash ../shared/tools/docker-here all
fi

export SERVICE_PORT=${SERVICE_PORT:-8017}
base=http://127.0.0.1:$SERVICE_PORT
compose=(docker compose --project-name slimrank-smoke --file docker/compose.yaml)
clean_up() {
  local status=$?
  [[ $status -eq 0 ]] || "${compose[@]}" logs --tail 40 || true
  "${compose[@]}" down --volumes --timeout 10 >/dev/null 2>&1 || true
}
trap clean_up EXIT

# curl's exit status says whether the service answered with a 2xx.
rank() {
  curl --silent --show-error --fail --max-time 5 --header 'Content-Type: application/json' \
    --data "{\"candidates\": $ids, \"user\": {\"u_segment\": \"3\"}, \"top_k\": 3}" "$base/rank"
}
redis() { "${compose[@]}" exec -T redis redis-cli "$@" | tr -d '\r'; }

say "building"
"${compose[@]}" build --quiet seed service
bytes=$(docker image inspect --format '{{.Size}}' slimrank-serve)
say "serve image: $((bytes / 1000000)) MB, limit 450"
((bytes < 450000000)) || fail "the serve image is too big"
docker run --rm slimrank-serve python -c '
import importlib.util as u, os
found = [name for name in ("torch", "onnx", "polars") if u.find_spec(name)]
assert not found, found
assert os.getuid() != 0'
say "serve image: no torch, onnx or polars, and not root"

say "compose up"
SECONDS=0
"${compose[@]}" up --detach --wait service
say "ready after $SECONDS s, training and publishing included"

ids=$("${compose[@]}" exec -T service python -c '
import json, pathlib
path = next(pathlib.Path("/srv/store/demo").rglob("items/ids.json"))
print(json.dumps(json.loads(path.read_text())[:5]))')
say "/rank of $ids:"
rank
echo

digest=$(curl --silent --fail "$base/models/demo" | python3 -c 'import json, sys; print(json.load(sys.stdin)["digest"])')
say "digest served: $digest; keys in Redis:"
keys=$(redis --scan)
echo "$keys"
grep -q "${digest#sha256:}" <<<"$keys" || fail "Redis holds no table of the digest that is served"

say "Redis stopped; /rank:"
"${compose[@]}" stop --timeout 5 redis >/dev/null 2>&1
rank >/dev/null || fail "the service does not answer without Redis"
curl --silent --fail --output /dev/null "$base/readyz" || fail "not ready without Redis"
say "answers without Redis"
"${compose[@]}" start redis >/dev/null 2>&1
rank >/dev/null || fail "the service does not answer after Redis came back"
say "answers with Redis back"

"${compose[@]}" stop --timeout 20 service >/dev/null 2>&1
code=$(docker inspect --format '{{.State.ExitCode}}' "$("${compose[@]}" ps --all --quiet service)")
say "the service ended with status $code on SIGTERM"
[[ $code == 0 || $code == 143 ]] || fail "not a clean end"
say "passed"
