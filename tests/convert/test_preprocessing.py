"""The pixels that an encoder was trained on: read beside the weights, recorded, and compared with a config."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from jaxboost.convert import convert, encoders, summary
from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.tables.preprocessing import Pixels, of_timm, of_transformers
from jaxboost.models.backbones import BACKBONES
from jaxboost.systems.encoders import other_pixels, resolve_encoder
from tests.convert import vision_checkpoints as vision

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CLIP = Pixels(tuple(MEAN), tuple(STD))
FIELDS = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "image_mean": MEAN, "image_std": STD}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, CLIP),
        ({"rescale_factor": None, "do_rescale": None}, CLIP),
        ({"do_normalize": False}, Pixels((0.0,) * 3, (1.0,) * 3)),
        # Other pixels than those in [0, 1], and what is no number: nothing is said.
        ({"rescale_factor": 1 / 127.5}, None),
        ({"do_rescale": False}, None),
        ({"image_mean": None}, None),
        ({"image_mean": [0.5]}, None),
        ({"image_std": [0.5, 0.5, 0]}, None),
        ({"image_std": [0.5, 0.5, "0.5"]}, None),
        ({"image_std": [0.5, 0.5, float("nan")]}, None),
    ],
)
def test_preprocessor_of_transformers(changes, expected):
    assert of_transformers(Settings(FIELDS | changes, "here")) == expected


@pytest.mark.parametrize("section", ["pretrained_cfg", "preprocess_cfg"])
def test_timm_and_open_clip(section):
    assert of_timm(Settings({section: {"mean": MEAN, "std": STD}}, "here")) == CLIP
    assert of_timm(Settings({section: {"mean": MEAN}}, "here")) is None
    assert of_timm(Settings({section: MEAN}, "here")) is None


def test_a_folder_with_and_without_the_file(tmp_path, caplog, monkeypatch):
    source = tmp_path / "source"
    vision.tiny("clip").save_pretrained(source)
    without = convert(source, "all", tmp_path / "without")
    assert (without.pixel_mean, without.pixel_std) == (None, None)
    assert "pixel_mean" not in (tmp_path / "without" / "manifest.json").read_text()
    (source / "preprocessor_config.json").write_text(json.dumps(FIELDS))
    manifest = convert(source, "all", tmp_path / "with")
    assert (manifest.pixel_mean, manifest.pixel_std) == CLIP
    assert encoders.read_manifest(tmp_path / "with") == manifest
    assert encoders.fingerprint_at(tmp_path / "with") == encoders.fingerprint_at(tmp_path / "without")
    line = "--config.model.mean=0.48145466,0.4578275,0.40821073 --config.model.std=0.26862954,0.26130258,0.27577711"
    assert f"pixels  as it was trained: {line} (images of " in summary(manifest, tmp_path / "with")
    assert "pixels" not in summary(without, tmp_path / "without")
    (source / "preprocessor_config.json").write_text("{")
    assert convert(source, "all", tmp_path / "damaged").pixel_mean is None
    assert "preprocessor_config.json" in caplog.text
    assert "the pixels of the encoder's training are not recorded" in caplog.text

    row = BACKBONES["vit_tiny"]
    fitting = dataclasses.replace(row, arguments={**row.arguments, **manifest.arguments})
    monkeypatch.setitem(BACKBONES, "fitting", fitting)
    fields = {"weights": str(tmp_path / "with"), "weights_source": "", "weights_convert": False}
    model = ConfigDict({"backbone": "fitting", "dtype": "float32", "image_size": 28, "mean": (0.5,), "std": STD})
    for _ in range(2):
        resolve_encoder("encoder", model, ConfigDict(fields), "weights", trainable=False)
    assert caplog.text.count("was trained on pixels of another scale than model.mean=0.5: it had") == 1

    assert other_pixels(manifest, dict(mean=(0.4815, 0.4578, 0.4082), std=tuple(STD))) is None
    assert other_pixels(without, dict(mean=(0.0,), std=(1.0,))) is None
    assert other_pixels(manifest, dict(mean=(0.5,), std=tuple(STD))) == (
        "the encoder of source was trained on pixels of another scale than model.mean=0.5: it had"
        " --config.model.mean=0.48145466,0.4578275,0.40821073"
    )
    assert "model.mean=0, model.std=1: it had " + line in other_pixels(manifest, dict(mean=(0.0,), std=(1.0,)))
