"""PyTorch's side of a training step: the same classifier there, and our weights under its names.

Encoders with a CLS token are restated in `tests/reference`; those of timm's families are timm's own models. PyTorch and
timm are imported inside the functions, in the processes that need them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxboost.models.backbones import BACKBONES

if TYPE_CHECKING:
    from benchmarks.contenders import Case


def timm_names() -> dict[str, str]:
    """Our backbones that are models of timm -> timm's names."""
    from jaxboost.convert.tables.families import FAMILIES

    families = FAMILIES.values()
    return {ours: theirs for family in families for theirs, ours in reversed(family.architectures.items())}


def names() -> list[str]:
    """The backbones that PyTorch's side has; the restatement lacks the options of CLIP, DINOv2 and the like."""
    restated = [
        name
        for name, backbone in BACKBONES.items()
        if backbone.traits.gives_tokens
        and backbone.traits.cls_first
        and backbone.traits.defaults.keys().isdisjoint(backbone.arguments)
    ]
    return [*restated, *timm_names()]


def state(case: "Case", params: Mapping[str, Any], frozen: Mapping[str, Any], stats: Mapping[str, Any]) -> Any:
    """Our weights and statistics as the state of `module`: name -> tensor."""
    from tests.reference import weights

    if case.model in timm_names():
        return _timms_state(case, weights.join(params, stats))
    return weights.classifier_state(weights.join(params, frozen), ndim=BACKBONES[case.model].ndim)


def module(case: "Case", state: Mapping[str, Any] | None = None) -> Any:
    """The classifier in PyTorch; without a state it has shapes alone."""
    import torch

    if state is None:
        with torch.device("meta"):
            return _build(case)
    if case.model in timm_names():
        # Its tables of positions and masks are no part of a state: they are computed.
        built = _build(case)
        own = built.state_dict()
        given = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
        # The small ConvNeXts have 1 x 1 convolutions in the place of linear layers.
        ours = {name: value.reshape(own[name].shape) if name in own else value for name, value in state.items()}
        built.load_state_dict({**given, **ours}, strict=True)
        return built
    built = module(case)
    built.load_state_dict(state, strict=True, assign=True)
    return built


def _build(case: "Case") -> Any:
    from jaxboost.models.layers import CHANNELS
    from jaxboost.models.llama import FAMILIES
    from tests.reference import rllm

    if timms := timm_names().get(case.model):
        import timm

        return timm.create_model(timms, num_classes=case.classes, drop_rate=0.0, drop_path_rate=0.0)
    backbone, family = BACKBONES[case.model], FAMILIES[case.family]
    encoder = getattr(rllm, backbone.encoder.__name__)(
        image_size=case.image_size, channels=CHANNELS, **backbone.arguments
    )
    width, boost = backbone.arguments["width"], None
    if case.boost != "none":
        block = None
        if not case.boost.startswith("mlp"):
            block = rllm.LlamaBlock(depth=1, eps=family.eps, **family.shape)
        boost = rllm.Boost(case.boost, width=width, block_width=family.width, block=block)
    return rllm.Classifier(encoder, boost, width=width, classes=case.classes, head_eps=backbone.head_eps)


def _timms_state(case: "Case", tree: Mapping[str, Any]) -> Any:
    import jax
    import timm

    from jaxboost.convert.tables.families import FAMILIES
    from jaxboost.convert.tables.family import leaf
    from tests.reference.weights import tensor

    backbone, found = BACKBONES[case.model], {}
    family = FAMILIES[str(backbone.traits.names)]
    head = timm.get_pretrained_cfg(timm_names()[case.model]).classifier
    modules = {"head": head, "head_norm": family.norm}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        part, *rest = (str(entry.key) for entry in path)
        array, ours = np.asarray(value), ".".join(rest)
        if rest[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if part == "encoder":
            found[family.layouts[-1].name(ours, backbone.recorded_arguments)] = tensor(array)
        else:
            found[f"{modules[part]}.{leaf(ours)}"] = tensor(array)
    return found


def decays(name: str, ndim: int) -> bool:
    """Whether the weights of PyTorch's name decay, as `optim.decay_mask` says: not biases, norms and positions."""
    return ndim > 1 and not name.endswith(("positions", "relative_position_bias_table"))
