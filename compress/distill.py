"""Teacher → student: soft targets beside the labels (Hinton et al. 2015, arXiv 1503.02531).

    loss = weight · T² · BCE(σ(teacher / T), student / T)  +  (1 - weight) · BCE(label, student)

T² keeps the gradient's scale independent of the temperature.
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from compress.config import DistillConfig


def click_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean binary cross-entropy."""
    return binary_cross_entropy_with_logits(logits, label)


def distillation_loss(
    logits: Tensor, label: Tensor, teacher_logits: Tensor, config: DistillConfig
) -> Tensor:
    """The loss of a student that also imitates its teacher."""
    t = config.temperature
    soft = binary_cross_entropy_with_logits(logits / t, (teacher_logits / t).sigmoid()) * t**2
    return config.weight * soft + (1 - config.weight) * click_loss(logits, label)
