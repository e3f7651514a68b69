"""What the device can compute with. Only `current` asks jax; whoever decides by device takes a `Device`."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """A device, as far as defaults depend on it.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: the maker's name of the model, such as "NVIDIA A100-SXM4-40GB".
      capability: CUDA compute capability (major, minor); None for all but NVIDIA's GPUs.
    """

    platform: str
    kind: str
    capability: tuple[int, int] | None = None

    @property
    def has_bfloat16(self) -> bool:
        """Whether matrix products of bfloat16 run in hardware: TPUs, and NVIDIA's GPUs since Ampere."""
        return self.platform == "tpu" or (self.capability is not None and self.capability >= (8, 0))


def current() -> Device:
    """The first local device. All local devices are taken to be alike. Starts jax's backend."""
    import jax

    first = jax.local_devices()[0]
    capability = None
    # ROCm's devices have a text of another form in the same place.
    if "cuda" in first.client.platform_version:
        major, minor = first.compute_capability.split(".")
        capability = (int(major), int(minor))
    return Device(platform=first.platform, kind=first.device_kind, capability=capability)


def default_dtype(device: Device) -> str:
    """The dtype of the computation where a config leaves it to the device (`model.dtype=auto`)."""
    return "bfloat16" if device.has_bfloat16 else "float32"
