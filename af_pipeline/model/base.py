"""What every detector has in common: its input, its losses, its answers.

Coordinates are network-input px of a chip, half-open boxes x0, y0, x1, y1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from af_pipeline.model.backbones import Backbone
from af_pipeline.model.losses import Targets
from af_pipeline.model.selection import MAX_DETECTIONS, Output

INPUT_MULTIPLE = 32  # network input sides must be multiples of the coarsest stride
PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255, torchvision's ImageNet statistics
PIXEL_STD = (58.395, 57.12, 57.375)


class Detector(nn.Module, ABC):
    """A detector with a FocusPixel head.

    ``num_classes``: object classes, without background; ``loss_names``: the parts that
    `losses` always returns, in order.
    """

    loss_names: tuple[str, ...] = ()
    backbone: Backbone
    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)

    def normalised(self, batch: Tensor) -> Tensor:
        """Batch uint8 [N, 3, H, W] RGB -> float [N, 3, H, W], channels last.

        Raises ValueError unless H and W are multiples of 32.
        """
        height, width = batch.shape[-2:]
        if height % INPUT_MULTIPLE or width % INPUT_MULTIPLE:
            raise ValueError(
                f"batch is {height}x{width}; pad both sides to multiples of {INPUT_MULTIPLE}"
            )
        images = (batch.float() - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last)

    @abstractmethod
    def losses(self, batch: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Loss parts `loss_names` of a training batch uint8 [N, 3, H, W].

        Every trainable parameter gets a gradient, of zeros where there is nothing to learn, so
        that DDP sees each of them in each step.
        """

    @abstractmethod
    def forward(
        self,
        batch: Tensor,
        sizes: Tensor,
        min_score: float = 0.01,
        nms_iou: float = 0.6,
        max_detections: int = MAX_DETECTIONS,
    ) -> tuple[list[Output], Tensor]:
        """Detections of each chip of a batch uint8 [N, 3, H, W] and FocusPixel probabilities.

        ``sizes`` int [N, 2] are the (height, width) of the chips inside the padded batch, which
        detections never leave; the probabilities are [N, H/16, W/16]. What a chip has beyond
        ``max_detections`` is counted in its `Output`.
        """

    @abstractmethod
    def proposals(self, batch: Tensor, sizes: Tensor, count: int = 300) -> list[Output]:
        """The likeliest object boxes of each chip whatever their class: labels are 0.

        At most ``count`` a chip, of any size, after NMS at IoU 0.7. Where they lie far from
        every object they make negative chips (SNIPER §3.2).
        """


__all__ = ["INPUT_MULTIPLE", "Detector", "Output"]
