"""Small chips and targets for the detectors' tests."""

import math

import torch
from torch import Tensor, nn

from af_pipeline.models.detector import Detector, Output, Targets
from af_pipeline.settings.train import OptimRule
from af_pipeline.sniper.sample import PAD_VALUE
from af_pipeline.training.step import LossModule, build_optimizer, train_step

Box = tuple[float, float, float, float]
OBJECTS: tuple[Box, Box] = ((20, 30, 60, 54), (80, 20, 110, 84))


def chips(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth noise uint8 [count, 3, height, width]."""
    made = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, height // 8, width // 8), generator=made)
    return nn.functional.interpolate(coarse.float(), scale_factor=8, mode="bilinear").byte()


def padded(batch: Tensor, height: int, width: int) -> Tensor:
    """The batch in the upper left corner of a grey canvas."""
    canvas = torch.full((len(batch), 3, height, width), PAD_VALUE, dtype=torch.uint8)
    canvas[..., : batch.shape[-2], : batch.shape[-1]] = batch
    return canvas


def sizes(*rows: tuple[int, int]) -> Tensor:
    return torch.tensor(rows)


def targets(
    side: int, *images: list[tuple[Box, int, bool]], limits: tuple[float, float] = (0.0, math.inf)
) -> Targets:
    """Each image: (box, label, valid); what is not valid is ignored. Boxes are FocusPixels."""
    most = max(map(len, images))
    boxes = torch.zeros(len(images), most, 4)
    labels = torch.zeros(len(images), most, dtype=torch.int64)
    valid, ignored = (torch.zeros(len(images), most, dtype=torch.bool) for _ in range(2))
    focus = torch.zeros(len(images), side // 16, side // 16, dtype=torch.int64)
    for i, image in enumerate(images):
        for j, (box, label, good) in enumerate(image):
            boxes[i, j] = torch.tensor(box)
            labels[i, j], valid[i, j], ignored[i, j] = label, good, not good
            x0, y0, x1, y1 = (int(value) // 16 for value in box)
            focus[i, y0 : y1 + 1, x0 : x1 + 1] = 1
    return Targets(
        boxes, labels, valid, ignored, ignored & False, focus, torch.tensor([limits] * len(images))
    )


def easy_chip() -> tuple[Tensor, Targets]:
    """A grey chip of 128 px with a bright object of class 0 and a dark one of class 2."""
    made = torch.Generator().manual_seed(0)
    image = torch.randint(90, 130, (1, 3, 128, 128), generator=made).byte()
    for (x0, y0, x1, y1), colour in zip(OBJECTS, (240, 20), strict=True):
        image[..., int(y0) : int(y1), int(x0) : int(x1)] = colour
    return image, targets(128, [(OBJECTS[0], 0, True), (OBJECTS[1], 2, True)])


def teach(detector: Detector, steps: int, rate: float) -> tuple[Tensor, Targets]:
    """Train on the easy chip until the loss has fallen well -> the chip and its targets."""
    # One chip gives no statistics worth averaging: normalise by its own, learned at once.
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    rule = OptimRule(steps=steps, lr=rate, weight_decay=0.0, warmup_steps=5, bf16=False)
    images, wanted = easy_chip()
    model = LossModule(detector.train())
    optimizer = build_optimizer(model, rule)
    torch.set_flush_denormal(True)  # as the trainer does: moments that decay are slow otherwise
    try:
        totals = [
            train_step(model, optimizer, (images, wanted), rule, i)["total"] for i in range(steps)
        ]
    finally:
        torch.set_flush_denormal(False)
    detector.eval()
    assert totals[-1] < totals[0] / 4, totals
    return images, wanted


def missing_gradients(detector: Detector) -> list[str]:
    """Trainable parameters whose gradient is missing or not finite."""
    return [
        name
        for name, p in detector.named_parameters()
        if p.requires_grad and (p.grad is None or not bool(p.grad.isfinite().all()))
    ]


def close(a: Output, b: Output) -> None:
    torch.testing.assert_close(a.scores, b.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(a.boxes, b.boxes, atol=1e-3, rtol=0)
    assert torch.equal(a.labels, b.labels)
