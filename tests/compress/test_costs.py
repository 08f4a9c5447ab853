"""What a ranker costs is counted on the files of its bundle."""

from compress.costs import bytes_by_part
from compress.rankers.base import Ranker
from model_store.bundle import Bundle


def test_bytes_by_part_add_up_to_the_folder(exported: Bundle, slimmed: Ranker):
    """No file is left out; the embedding part is the fused table to the byte."""
    parts = bytes_by_part(exported.root)
    files = [path for path in exported.root.rglob("*") if path.is_file()]

    assert sum(parts.values()) == sum(path.stat().st_size for path in files)
    assert parts["embedding tables"] == slimmed.tables["4"].weight.numel() * 4
    assert {"mlp", "vocab", "items", "golden", "manifest", "history"} <= set(parts)
