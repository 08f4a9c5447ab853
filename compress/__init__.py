"""The offline compressor: trains rankers, slims them and exports bundles."""

import os

# ONNX Runtime's Linux builds report to their vendor unless told not to before it is imported, and
# `disable_telemetry_events` comes too late: the first report is sent on import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # noqa: TID251 - set for a library, not a setting
# Ray's clusters do the same.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # noqa: TID251
