"""Zero-shot CLIP: the probabilities are transformers' own, the test split is scored once, and mistakes are refused."""

import csv
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from jaxboost.analysis import describe
from jaxboost.baselines import embeddings
from jaxboost.baselines.classifiers import CLASSIFIERS
from jaxboost.baselines.zero_shot import ZeroShot
from jaxboost.config import load_config, validation
from jaxboost.convert import class_prompts
from jaxboost.errors import UserError
from jaxboost.inference import open_run
from jaxboost.runs import datasets, train, workdir
from jaxboost.studies import data_check
from tests import finished_runs
from tests.baselines.small import small_config, write_images
from tests.convert import clip_checkpoints as clip
from tests.convert import vision_checkpoints as vision
from tests.models import clip_cases
from tests.models.clip_cases import MEAN, PROMPTS, SIDE, STD


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with clip_cases.known(tmp_path_factory.mktemp("clip")) as checkpoint:
        yield checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("small") / "images")


@pytest.fixture
def config(checkpoint, images):
    def make(**changes):
        folder = checkpoint.folder
        fields = {
            "model.backbone": clip_cases.NAME,
            "model.weights": str(folder / "vision"),
            "model.mean": MEAN,
            "model.std": STD,
            "baseline.text": str(folder / "text"),
        }
        return small_config(images, "zero_shot", **{**fields, **changes})

    return make


def test_probabilities_are_those_of_transformers(checkpoint, config, images, tmp_path):
    model, folder = checkpoint.model, checkpoint.folder
    train.train_and_evaluate(config(), tmp_path / "run")
    names = finished_runs.named_predictions(tmp_path / "run")
    pixels = np.stack([np.asarray(Image.open(images / name)) for name in names])
    normed = (pixels[:, None] / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    prompts = [f"a {name} image" for name in ("dark", "grey", "light")]
    tokens = clip.tokenizer(str(folder / "source"))(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, pixel_values=torch.from_numpy(normed.astype(np.float32))).logits_per_image
    expected = logits.softmax(-1).numpy()
    assert np.ptp(expected, axis=0).min() > 1e-3
    own = finished_runs.own_predictions(tmp_path / "run")
    np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)

    result = workdir.result_in(tmp_path / "run")
    assert (result.boost, result.steps, result.selection.chosen) == ("baseline", None, {})
    assert (result.parameters.trainable, result.text.source) == (0, "source")
    assert result.text.prompts["grey"] == ("a grey image",)
    # What a prediction needs of the text encoder is in the run's folder, so naming one would have no effect.
    with pytest.raises(UserError, match=r"--set: 'baseline\.text' is unknown"):
        open_run.open_run(tmp_path / "run", [f"baseline.text={folder / 'text'}"])
    run = open_run.open_run(tmp_path / "run")
    np.testing.assert_allclose(run.predict(pixels), expected, rtol=1e-5, atol=1e-5)
    assert run.features(pixels).shape == (12, 2 * vision.WIDTH)

    # The same weights elsewhere are the same run, other prompts are not.
    shutil.copytree(folder / "text", tmp_path / "moved")
    train.train_and_evaluate(config(**{"baseline.text": str(tmp_path / "moved")}), tmp_path / "run")
    others = PROMPTS | {"dark": ["no light"]}
    class_prompts.convert_text(str(folder / "source"), others, tmp_path / "others")
    with pytest.raises(UserError, match=r"finished run with the text encoder from source \(.*give another --workdir"):
        train.train_and_evaluate(config(**{"baseline.text": str(tmp_path / "others")}), tmp_path / "run")


def test_volumes_are_the_mean_of_their_middle_views(checkpoint, config, tmp_path):
    """Three slices of each volume go through transformers' own encoder; the mean of their CLS tokens is projected."""
    rng = np.random.default_rng(3)
    root, rows = tmp_path / "volumes", []
    for number in range(12):
        label = number % 3
        volume = np.clip(rng.normal(60 + 40 * label, 40, (SIDE,) * 3), 0, 255).astype(np.uint8)
        (root / f"{number:02d}.npy").parent.mkdir(exist_ok=True)
        np.save(root / f"{number:02d}.npy", volume)
        rows.append(
            (
                f"{number:02d}.npy",
                ("dark", "grey", "light")[label],
                f"p{number}",
                ("train", "val", "test", "test")[number // 3],
            )
        )
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient_id", "split"), *rows])
    changes = {"data.root": str(root), "baseline.ndim": 3, "baseline.views": "middle"}
    train.train_and_evaluate(config(**changes), tmp_path / "run")
    names = finished_runs.named_predictions(tmp_path / "run")
    volumes = np.stack([np.load(root / name) for name in names])
    middle = SIDE // 2
    views = [volumes[:, middle], volumes[:, :, middle], volumes[:, :, :, middle]]
    model = checkpoint.model
    tokens = clip.tokenizer(str(checkpoint.folder / "source"))(
        [f"a {name} image" for name in ("dark", "grey", "light")], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        pooled = []
        for view in views:
            pixels = (view[:, None] / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
            pooled.append(model.vision_model(torch.from_numpy(pixels.astype(np.float32))).pooler_output)
        images = model.visual_projection(torch.stack(pooled).mean(0))
        texts = model.text_projection(model.text_model(**tokens).pooler_output)
        cosines = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
        expected = (model.logit_scale.exp() * cosines).softmax(-1).numpy()
    np.testing.assert_allclose(finished_runs.own_predictions(tmp_path / "run"), expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-3


def test_a_prediction_needs_no_text_encoder(checkpoint, config, tmp_path):
    folder = checkpoint.folder
    text = shutil.copytree(folder / "text", tmp_path / "text")
    train.train_and_evaluate(config(**{"baseline.text": str(text)}), tmp_path / "run")
    shutil.rmtree(text)
    image = np.full((1, SIDE, SIDE), 100, np.uint8)
    assert open_run.open_run(tmp_path / "run").predict(image).sum() == pytest.approx(1)


def test_prompts_are_read_before_images_are_encoded(checkpoint, config, tmp_path, monkeypatch):
    """A damaged folder is told at once; and of the images those of the train split are not encoded at all."""
    text, seen = shutil.copytree(checkpoint.folder / "text", tmp_path / "text"), []
    of_dataset = embeddings.of_dataset

    def watched(dataset, *arguments, **options):
        seen.append(set(dataset.splits))
        return of_dataset(dataset, *arguments, **options)

    monkeypatch.setattr(embeddings, "of_dataset", watched)
    part = text / "prompts.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"prompts\.safetensors is altered or truncated: convert again"):
        train.train_and_evaluate(config(**{"baseline.text": str(text)}), tmp_path / "run")
    assert seen == []
    part.write_bytes(whole)
    train.train_and_evaluate(config(**{"baseline.text": str(text)}), tmp_path / "run")
    assert seen == [{"val", "test"}]


def test_scale_and_arrays():
    """Two classes at right angles: the cosines of an image along the first are 1 and 0."""
    found = ZeroShot(np.eye(2, dtype=np.float32), np.array([[2, 0], [0, 3]], np.float32), 5.0)
    features = np.array([[0.1, 0, 9, 9], [0, 7, 9, 9], [3, 2, 0, 0], [0, 0, 1, 1]])
    sure = 1 / (1 + np.exp(-5))
    expected = [[sure, 1 - sure], [1 - sure, sure], [0.5, 0.5], [0.5, 0.5]]
    np.testing.assert_allclose(found.probabilities(features), expected, rtol=1e-6)
    again = CLASSIFIERS["zero_shot"].restore(found.arrays(), task="multi-class", classes=2, hyper={})
    np.testing.assert_array_equal(again.probabilities(features), found.probabilities(features))
    with pytest.raises(ValueError, match="not those of the classes"):
        ZeroShot.restore(found.arrays(), task="multi-class", classes=3, hyper={})


def test_description():
    found = describe.describe(load_config("baseline:zero_shot+2d", **{"data.name": "pneumoniamnist"}))
    assert (found["classifier"], found["trainable"], found["features"]) == ("zero_shot", 0, 2 * 768)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baseline.text": ""}, "baseline.text is empty: set it to the folder that `jaxboost convert --source"),
        ({"baseline.features": "trivial"}, 'zero_shot compares prompts with embeddings, set it to "encoder"'),
        ({"baseline.features": "none"}, "baseline.features: zero_shot needs features"),
        ({"baseline.classifier": "knn"}, 'baseline.text: knn reads no prompts, set it to ""'),
        (
            {"data.name": "chestmnist", "baseline.ndim": 2},
            "zero_shot compares classes that exclude each other, and chestmnist is multi-label: set it to logistic",
        ),
    ],
)
def test_fields_that_do_not_go_together(changes, words):
    fields = {"data.name": "pneumoniamnist", "baseline.ndim": 2} | changes
    (problem,) = validation.problems(load_config("baseline:zero_shot", **fields))
    assert words in problem


def test_a_study_finds_prompts_for_other_classes(checkpoint, config):
    """One text encoder is right for some data and wrong for others."""
    known = {}
    info = dataclasses.replace(datasets.describe(config()), classes=("dark", "grey", "light"))
    assert data_check._weights_problem(config(), info, known) == []
    other = dataclasses.replace(info, classes=("dark", "grey", "bright"))
    (problem,) = data_check._weights_problem(config(), other, known)
    assert "has no prompt for the class 'bright'" in problem
    assert data_check._weights_problem(config(), info, known) == []


def test_what_does_not_belong_together_is_refused(checkpoint, config, tmp_path):
    folder = checkpoint.folder
    cases = {}
    class_prompts.convert_text(str(folder / "source"), {"dark": ["a dark image"]}, tmp_path / "few")
    cases["has no prompt for the class 'grey', 'light'"] = {"baseline.text": str(tmp_path / "few")}
    cases["there is no text encoder at"] = {"baseline.text": str(tmp_path / "nowhere")}
    cases["holds a vision encoder, not a text encoder"] = {"baseline.text": str(folder / "vision")}
    other = {"model.weights": "random", "model.backbone": "vit_tiny"}
    cases["belongs to a vision encoder of width 24, and model.backbone=vit_tiny has 128"] = other
    for words, changes in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            train.train_and_evaluate(config(**changes), tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run" / "result.json").exists()
