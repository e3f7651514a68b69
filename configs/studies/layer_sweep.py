"""Which layer of the LLM helps most?

    jaxboost study --study layer_sweep --out DIR

R-LLM with one frozen layer of SmolLM2-135M, from the first to the last of 30, on nodule shapes of LIDC-IDRI.

Cost, estimated for two CPU cores: about 3 minutes a run; 8 arms with three learning rates and five seeds are 56 runs,
some 3 hours.
Expected: no order by depth; the paper takes the last layer without a comparison.
"""

from jaxboost.studies.study import SWEEP, Arm, Comparison, Study

LAYERS = (0, 5, 10, 15, 20, 25, 29)


def get_study(argument: str = "") -> Study:
    """The study; `argument` has the layers, such as "0+14+29"."""
    layers = tuple(int(word) for word in argument.split("+")) if argument else LAYERS
    plain = Arm(
        name="none", title="No block", config="quickstart", overrides={"boost.kind": "none"}, group=SWEEP, tuned=True
    )
    arms = [
        Arm(
            name=f"layer_{layer}",
            title=f"R-LLM, layer {layer}",
            config="quickstart",
            # A converted folder has the layers that were asked for when it was made.
            overrides={"boost.block": f"blocks/smollm2-135m-layer{layer}", "boost.layers": (layer,)},
            group=SWEEP,
            tuned=True,
        )
        for layer in layers
    ]
    return Study(
        name="layer_sweep",
        question="Which layer of the LLM helps most?",
        expected="The layers do not differ by more than the seeds do.",
        arms=(plain, *arms),
        comparisons=tuple(
            Comparison(arm=arm.name, reference="none", claim=f"layer {layer} helps", main=layer == max(layers))
            for layer, arm in zip(layers, arms, strict=True)
        ),
        lr_grid=(2e-4, 5e-4, 1.5e-3),
        shared={"train.epochs": 12, "optim.warmup_epochs": 0.5},
    )
