"""What can go wrong with bundles and stores. Nothing here knows HTTP."""

from typing import Any


class StoreError(Exception):
    """Base of all errors of the store."""


class BadReference(StoreError):
    """A text that should name a bundle ("name", "name@version", "name@alias") does not."""


class BundleNotFound(StoreError):
    """No bundle of that name."""


class VersionNotFound(StoreError):
    """The bundle has no such version or alias."""


class BundleExists(StoreError):
    """That version is already published; versions are immutable."""


class BundleCorrupt(StoreError):
    """A file is missing, of the wrong size, or of the wrong digest."""


class ManifestInvalid(StoreError):
    """The manifest cannot be read: not JSON, of a newer format, or against the schema."""


class AliasConflict(StoreError):
    """Another writer moved the alias first, or there is nothing to roll back to."""


class VersionInUse(StoreError):
    """The version cannot be deleted: an alias names it."""


class StoreUnavailable(StoreError):
    """The storage could not be read or written: full, forbidden, unreachable."""


class BadValue(ValueError):
    """A feature's value cannot be encoded.

    Attributes:
        feature: the feature's name.
        index: position in the values given (0-based).
        value: what came.
        expected: what would have been right, in words.
    """

    def __init__(self, feature: str, index: int, value: Any, expected: str) -> None:
        super().__init__(f"{feature}[{index}]: expected {expected}, got {value!r}")
        self.feature, self.index, self.value, self.expected = feature, index, value, expected
