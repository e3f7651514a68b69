"""torchvision's ResNets with a small stem, in three dimensions, with ACS convolutions, and narrow ones for tests.

All are torchvision modules whose convolutions and norms are replaced; the architecture stays torchvision's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tests.reference.weights import State, tensor

Tree = Mapping[str, Any]

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class AcsConv(nn.Conv2d):
    """A 3D convolution whose kernels are zero outside one plane: first axial, then coronal, then sagittal kernels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, channels, side, _ = self.weight.shape
        middle, kernel = side // 2, self.weight.new_zeros(out, channels, side, side, side)
        axial, coronal, sagittal = torch.arange(out).tensor_split(3)
        kernel[axial, :, middle, :, :] = self.weight[axial]
        kernel[coronal, :, :, middle, :] = self.weight[coronal]
        kernel[sagittal, :, :, :, middle] = self.weight[sagittal]
        return functional.conv3d(x, kernel, stride=self.stride[0], padding=middle)


CONVOLUTIONS = {"2d": nn.Conv2d, "3d": nn.Conv3d, "acs": AcsConv}


def make(
    block: str, depths: Sequence[int], *, convolution: str, stem: str, classes: int, base_width: int = 64
) -> ResNet:
    """A randomly initialised ResNet; arguments: see ours, with up to four stages."""
    model = ResNet(BLOCKS[block], [*depths, *[1] * (4 - len(depths))], num_classes=classes)
    for stage in range(len(depths), 4):
        setattr(model, f"layer{stage + 1}", nn.Identity())
    model.fc = nn.Linear(model.fc.in_features >> (4 - len(depths)), classes)
    if stem == "small":
        model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        model.maxpool = nn.Identity()
    exchange(model, CONVOLUTIONS[convolution], volume=convolution != "2d", share=64 // base_width)
    return model


def inflated(depths: Sequence[int], *, base_width: int) -> ResNet:
    """Merlin's inflated ResNet without a head, for (B, C, slices, X, Y): a stem of its own, the rest as in 3D."""
    model = make("bottleneck", depths, convolution="3d", stem="large", classes=1, base_width=base_width)
    model.conv1 = nn.Conv3d(3, base_width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
    model.fc = nn.Identity()
    return model


def exchange(module: nn.Module, convolution: type[nn.Module], *, volume: bool, share: int) -> None:
    """Replaces all convolutions, norms and poolings of a ResNet; their widths are divided by `share`."""
    for name, child in module.named_children():
        made = None
        if isinstance(child, nn.Conv2d):
            channels = child.in_channels if child.in_channels == 3 else child.in_channels // share
            size, stride = child.kernel_size[0], child.stride[0]
            made = convolution(channels, child.out_channels // share, size, stride, padding=size // 2, bias=False)
        elif isinstance(child, nn.BatchNorm2d):
            made = (nn.BatchNorm3d if volume else nn.BatchNorm2d)(child.num_features // share)
        elif isinstance(child, nn.Linear):
            made = nn.Linear(child.in_features // share, child.out_features)
        elif isinstance(child, nn.MaxPool2d) and volume:
            made = nn.MaxPool3d(child.kernel_size, child.stride, child.padding)
        elif isinstance(child, nn.AdaptiveAvgPool2d) and volume:
            made = nn.AdaptiveAvgPool3d(1)
        if made is None:
            exchange(child, convolution, volume=volume, share=share)
        else:
            setattr(module, name, made)


def state(encoder: Tree, depths: Sequence[int]) -> State:
    """State of the restatement without head and counters, from the encoder's tree.

    The tree may hold weights, gradients of them, statistics, or several of these joined.
    """
    found = dict(_conv_norm(encoder["stem"], "conv1", "bn1"))
    names = [f"layer{stage + 1}.{number}" for stage, depth in enumerate(depths) for number in range(depth)]
    for i, name in enumerate(names):
        block = encoder["blocks"][i]
        for j, conv in block["convs"].items():
            found |= _conv_norm(conv, f"{name}.conv{j + 1}", f"{name}.bn{j + 1}")
        if "projection" in block:
            found |= _conv_norm(block["projection"], f"{name}.downsample.0", f"{name}.downsample.1")
    assert len(encoder["blocks"]) == len(names)
    return found


_NAMES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def _conv_norm(tree: Tree, conv: str, norm: str) -> Iterable[tuple[str, torch.Tensor]]:
    if "conv" in tree:
        kernel = np.asarray(tree["conv"]["kernel"])
        yield f"{conv}.weight", tensor(np.moveaxis(kernel, (-1, -2), (0, 1)))
    for name, value in tree["norm"].items():
        yield f"{norm}.{_NAMES[name]}", tensor(value)


def head_state(head: Tree) -> State:
    """State of the restatement's last layer from the classifier's head."""
    return {"fc.weight": tensor(head["kernel"].T), "fc.bias": tensor(head["bias"])}


def load(weights: State, model: ResNet) -> ResNet:
    """Loads a state that lacks only the counters of batches, which are not used, and returns the module."""
    missing, left = model.load_state_dict(weights, strict=False)
    assert not left
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return model
