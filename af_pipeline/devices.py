"""Which device computes, and whether bfloat16 pays on it."""

from __future__ import annotations

from typing import Literal

import torch

Switch = bool | Literal["auto"]


class DeviceError(ValueError):
    """The asked-for device is not there."""


def pick_device(name: str) -> torch.device:
    """ "auto" takes a GPU where there is one; "cuda" without one raises DeviceError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device=cuda, but torch sees no GPU here: use device=auto or cpu")
    return torch.device(name)


def use_bf16(switch: Switch, device: torch.device) -> bool:
    """Whether to compute in bfloat16; "auto": where ``device`` has instructions for it.

    Without them a CPU emulates each product: 16 times as slow as float32 where measured
    (AVX2, docs/LOG.md).
    """
    if switch != "auto":
        return switch
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
