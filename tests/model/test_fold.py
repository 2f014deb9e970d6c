"""Folded batch norms compute what the detector computed."""

import torch

from af_pipeline.model.detector import AutoFocusDetector
from af_pipeline.model.fold import folded


def trained_a_little() -> AutoFocusDetector:
    """A small detector whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    detector = AutoFocusDetector(3, width=0.25, channels=16, head_depth=2).train()
    with torch.no_grad():
        for _ in range(3):
            detector.raw(torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8))
    return detector.eval()


def test_folding_changes_no_output_and_leaves_the_original_alone() -> None:
    detector = trained_a_little()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    other = folded(detector)
    batch = torch.randint(0, 255, (2, 3, 96, 64), dtype=torch.uint8)
    with torch.inference_mode():
        plain, quick = detector.raw(batch), other.raw(batch)
    for name in ("class_logits", "boxes", "focus"):
        torch.testing.assert_close(getattr(quick, name), getattr(plain, name), atol=1e-3, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_no_batch_norm_is_left() -> None:
    other = folded(trained_a_little())
    kinds = {type(module).__name__ for module in other.modules()}
    assert "BatchNorm2d" not in kinds
