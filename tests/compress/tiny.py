"""The config of a whole run that takes seconds."""

from pathlib import Path

CONFIG = """
name = "tiny"
seeds = [1, 2]
[data]
type = "synthetic"
rows = 3000
catalogue = 40
[ranker]
type = "dlrm"
dim = 4
bottom = [6]
top = [16, 8]
[train]
lr = 1e-2
batch_size = 128
epochs = 2
[method]
type = "umec"
budget.flops = 0.5
[finetune]
batch_size = 128
epochs = 1
[export]
golden_requests = 2
golden_candidates = 10
timing_candidates = 20
"""


def config_file(folder: Path) -> Path:
    """The config, its run folder and its store inside ``folder``."""
    path = folder / "tiny.toml"
    places = f'runs = "{folder / "runs"}"\npublish.store = "{folder / "store"}"\n'
    path.write_text(places + CONFIG)
    return path
