"""Which part of R-LLM does the work: the LLM's weights, a transformer layer, or more parameters?

    jaxboost study --study controls --out DIR
    jaxboost study --study controls:2d+pretrained --out DIR --config.data.name=breastmnist

Every arm is R-LLM with one thing changed: the same small ViT3D, data order and seeds, on nodule shapes of LIDC-IDRI.
Another data set of volumes: --config.data.name=vesselmnist3d. `:2d` is for images, and `:2d+pretrained` takes a frozen
pretrained encoder, both as in `ladder`. The study `complete` has the arms of both.

Cost, estimated for two CPU cores with --jobs 2: half a minute a run; 19 trained arms with three learning rates and five
seeds are 133 runs, about an hour. `--arms none,rllm,matched_1` runs a part of them.
Expected: no block, random blocks and the block of the LLM differ by less than the test set can show. If R-LLM is better
than no block, so is a block of random weights, or a trained layer of the same size.
"""

from collections.abc import Mapping

from jaxboost.studies.loading import folder_argument, load_study
from jaxboost.studies.study import CONTROL, Arm, Comparison, Study

_LAYER = 29  # the last one of SmolLM2-135M
_RANDOM = {"boost.block": "random", "boost.layers": (_LAYER,)}

# Name, title, what is changed, what it tells.
ROWS: tuple[tuple[str, str, dict[str, object], str], ...] = (
    ("none", "No block", {"boost.kind": "none"}, "The plain ViT."),
    ("identity", "Identity block", {"boost.kind": "identity"}, "Only the two linear maps and the residual."),
    (
        "random",
        "Random block",
        _RANDOM,
        "A frozen layer with the random weights that a model starts from.",
    ),
    *(
        (
            f"matched_{draw}",
            f"Random block at the LLM's scale, draw {draw}",
            {"boost.control": "matched", "boost.control_seed": draw - 1},
            "Each tensor is drawn from a normal distribution with the mean square of the LLM's.",
        )
        for draw in (1, 2, 3)
    ),
    (
        "shuffled",
        "Shuffled block",
        {"boost.control": "shuffled"},
        "The LLM's weights, in another order within each tensor: the values without the structure.",
    ),
    ("mlp", "Two linear maps", {"boost.kind": "mlp"}, "The paper's MLP control, which has no nonlinearity."),
    ("mlp_gelu", "MLP with GELU", {"boost.kind": "mlp_gelu"}, "An MLP of equal trainable size."),
    ("layer", "Trained layer", {"boost.kind": "layer"}, "One trained transformer layer of equal trainable size."),
    ("trainable", "Trained LLM layer", {"boost.trainable": True}, "The paper's fine-tuning arm."),
    (
        "trainable_random",
        "Trained layer of the LLM's size, from random weights",
        {**_RANDOM, "boost.trainable": True},
        "Whether the LLM's weights are a better start.",
    ),
    ("lora", "LLM layer with LoRA", {"boost.lora_rank": 8}, "The layer is adapted a little."),
    ("rope", "With rotary embedding", {"boost.rope": True}, "As in the LLM; the paper leaves it out."),
    ("causal", "With causal mask", {"boost.causal": True}, "The CLS token then sees only itself."),
    ("rope_causal", "With both", {"boost.rope": True, "boost.causal": True}, "The layer as it is in the LLM."),
    ("norm", "With the LLM's final norm", {"boost.final_norm": "loaded"}, "The paper's code leaves it at ones."),
)


def default_argument(overrides: Mapping[str, str]) -> str:
    """The argument that a folder of images needs; `overrides`: dotted field -> text, as on the command line."""
    return folder_argument(overrides)


def get_study(argument: str = "") -> Study:
    """The study; `argument` is that of `ladder`, whose encoder it takes."""
    ladder = load_study(f"ladder:{argument}" if argument else "ladder")
    vit = ladder.arm("rllm").overrides
    rllm = Arm(
        name="rllm",
        title="R-LLM",
        config="quickstart",
        overrides=vit,
        group=CONTROL,
        tuned=True,
        note="The frozen LLM layer.",
    )
    arms = [
        Arm(
            name=name,
            title=title,
            config="quickstart",
            overrides={**vit, **changes},
            group=CONTROL,
            tuned=True,
            note=note,
        )
        for name, title, changes, note in ROWS
    ]
    dropped = Arm(
        name="dropped",
        title="Block dropped after training",
        config="quickstart",
        overrides={**vit, "boost.kind": "identity"},
        group=CONTROL,
        after="rllm",
        note="R-LLM's runs, evaluated with the identity in the place of the layer: whether it is needed to predict.",
    )
    claims = {
        "none": "the frozen LLM layer helps",
        "identity": "the layer helps beyond its linear maps",
        "random": "the weights of the LLM help",
        "shuffled": "the structure of the LLM's weights helps",
        "mlp_gelu": "the layer helps more than an MLP of the same size",
        "layer": "the frozen layer helps more than a trained one",
        "dropped": "the layer is needed for predictions",
    }
    return Study(
        name=ladder.name.replace("ladder", "controls"),
        question="Which part of R-LLM does the work: the LLM's weights, a transformer layer, or more parameters?",
        expected="No block, random blocks and the LLM's block differ by less than this test set can show.",
        arms=(rllm, *arms, dropped),
        comparisons=tuple(
            Comparison(
                arm="rllm",
                reference=arm.name,
                claim=claims.get(arm.name, f"R-LLM is better than: {arm.title}"),
                main=arm.name == "none",
            )
            for arm in (*arms, dropped)
        ),
        lr_grid=ladder.lr_grid,
        shared={"data.name": ladder.shared["data.name"]},
    )
