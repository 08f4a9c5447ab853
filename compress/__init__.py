"""The offline compressor: trains rankers, slims them and exports bundles."""
