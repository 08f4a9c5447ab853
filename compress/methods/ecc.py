"""ECC, for FLOPs (Yang, Zhu & Liu, CVPR 2019, arXiv 1812.01803): layers under a budget, no fields.

UMEC's predecessor: the same minimax problem and the same steps, over the neurons of the layers
alone. Its energy model is replaced by FLOPs, as UMEC's paper compares with it: norms of weights,
undamped prices and no teacher, as published. Steps are scaled to a layer's size, and prices of
groups begin at 1, for else nothing steers before half of the steps are over.
"""

from typing import ClassVar, Literal

from compress.config import DistillConfig, Frozen
from compress.methods.groups import Norms, Part
from compress.methods.umec import Umec, UmecConfig


class EccConfig(UmecConfig):
    """UMEC's options, with other defaults."""

    parts: tuple[Part, ...] = ("neurons",)
    distill: DistillConfig = DistillConfig()
    norms: Norms = "energy"
    s_steps: Literal["paper", "scaled"] = "scaled"
    z_damping: bool = False


class Ecc(Umec):
    """UMEC without fields."""

    Config: ClassVar[type[Frozen]] = EccConfig
