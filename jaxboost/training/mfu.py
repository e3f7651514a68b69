"""Model FLOPs utilisation (MFU): which share of a device's peak the matrix products of training reach.

    mfu = images/s * FLOPs of a training step per image / (peak FLOP/s of the device * devices)

The FLOPs are those of `flops.count_flops` for the whole step: forward and backward pass of what is trained, and what
the backward pass computes again. With `model.remat` that is much, and others call the share hardware utilisation.
The time includes everything between two records: waiting for data too.
"""

import dataclasses
import re
from typing import Any

import jax

from jaxboost import device
from jaxboost.device import Device
from jaxboost.training.flops import count_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """Dense peaks of a device's matrix products, in TFLOP/s; None where it has no such products.

    Attributes:
      bf16: of bfloat16, summed in float32.
      tf32: of float32 with operands rounded as jax does by default: to 10 bits on NVIDIA's GPUs since Ampere, to
        bfloat16 on TPUs. None: jax does not round on this device.
      fp32: of float32 without rounding.
    """

    bf16: float | None = None
    tf32: float | None = None
    fp32: float | None = None


# The documents that are named were not at hand when the table was written: only the bfloat16 figures of A100 and H100
# (SXM) were compared with a source. Check a row before you publish an MFU.
# Device kind, as a pattern of the whole text that jax gives -> peaks. Variants with other figures, such as A10G or a
# slice of a GPU (MIG), match no row.
PEAKS = {
    # NVIDIA A100 Tensor Core GPU datasheet (2021): the same for 40 and 80 GB, SXM4 and PCIe.
    r"NVIDIA A100-(SXM4|PCIE|PCIe)-\d+GB|NVIDIA A100 80GB PCIe": Peak(bf16=312, tf32=156, fp32=19.5),
    # NVIDIA H100 Tensor Core GPU architecture white paper (2022), table 3: SXM5, PCIe; NVL: H100 datasheet (2024).
    r"NVIDIA H100 80GB HBM3": Peak(bf16=989.4, tf32=494.7, fp32=66.9),
    r"NVIDIA H100 PCIe": Peak(bf16=756, tf32=378, fp32=51.2),
    r"NVIDIA H100 NVL": Peak(bf16=835, tf32=417.5, fp32=60),
    # NVIDIA H200 datasheet (2024).
    r"NVIDIA H200": Peak(bf16=989, tf32=494, fp32=67),
    r"NVIDIA H200 NVL": Peak(bf16=835.5, tf32=418, fp32=60),
    # NVIDIA L4 datasheet (2023), which states twice as much, with sparsity.
    r"NVIDIA L4": Peak(bf16=121, tf32=60, fp32=30.3),
    # NVIDIA T4 datasheet (2019) and V100 datasheet (2020): neither has bfloat16 or TF32.
    r"Tesla T4": Peak(fp32=8.1),
    r"Tesla V100-SXM2-\d+GB": Peak(fp32=15.7),
    r"Tesla V100-PCIE-\d+GB": Peak(fp32=14),
    # NVIDIA A10 datasheet (2021).
    r"NVIDIA A10": Peak(bf16=125, tf32=62.5, fp32=31.2),
    # NVIDIA Ampere GA102 white paper (2021), table 9, and Ada GPU architecture white paper (2022), appendix A.
    r"NVIDIA GeForce RTX 3090": Peak(bf16=71, tf32=35.6, fp32=35.6),
    r"NVIDIA GeForce RTX 4090": Peak(bf16=165.2, tf32=82.6, fp32=82.6),
    # Google Cloud TPU documentation, system architecture: peak compute per chip of v4, v5e, v5p, v6e.
    r"TPU v4": Peak(bf16=275, tf32=275),
    r"TPU v5 lite|TPU v5e": Peak(bf16=197, tf32=197),
    r"TPU v5|TPU v5p": Peak(bf16=459, tf32=459),
    r"TPU v6 lite|TPU v6e": Peak(bf16=918, tf32=918),
}
_ROUNDED = (None, "default", "fastest", "tensorfloat32")
_EXACT = ("highest", "float32")


def peak_flops(given: Device, dtype: str, precision: str | None = None) -> float | None:
    """Peak FLOP/s of a device for a computation; None if it is not known.

    Args:
      given: the device.
      dtype: `model.dtype`, resolved.
      precision: jax's option `jax_default_matmul_precision`, which says whether float32 is rounded.
    """
    peak = next((row for pattern, row in PEAKS.items() if re.fullmatch(pattern, given.kind)), None)
    if peak is None:
        return None
    if dtype == "bfloat16":
        found = peak.bf16
    elif precision in _ROUNDED:
        found = peak.tf32 or peak.fp32
    else:
        found = peak.fp32 if precision in _EXACT else None
    return None if found is None else found * 1e12


class Utilisation:
    """The MFU of a run; nothing is counted, and no record has it, where the device's peak is not known.

    Args:
      dtype: `model.dtype`, resolved.
      devices: number of devices that share a step.
    """

    def __init__(self, dtype: str, devices: int):
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        peak = peak_flops(device.current(), dtype, precision)
        self._peak = None if peak is None else peak * devices
        self._per_image: float | None = None

    def count(self, step: Any, *arguments: Any, images: int) -> None:
        """Counts the FLOPs of a training step by its trace, which the step's first call uses too.

        Args:
          step: the step function.
          *arguments: its arguments, or their shapes.
          images: number of images of one step, also where a call takes several.
        """
        if self._peak is not None:
            self._per_image = count_flops(step, *arguments) / images

    def record(self, images_per_second: float | None) -> dict[str, float]:
        """The entry "mfu" of a record, from 0 to 1; {} if it is not known."""
        if self._peak is None or self._per_image is None or images_per_second is None:
            return {}
        return {"mfu": images_per_second * self._per_image / self._peak}
