"""What offline and online share: the bundle format, the feature encoding and the store."""
