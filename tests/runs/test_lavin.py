"""LaVIN runs from end to end on drawn radiographs, with tiny random frozen parts and a converted question."""

import json

import numpy as np
import pytest

from jaxboost.convert import convert, question_text
from jaxboost.errors import UserError
from jaxboost.inference import export, exported, open_run
from jaxboost.runs import cross_validation
from tests.convert.tokens import add_tokenizer
from tests.reference import llm_models
from tests.training.radiographs import small, write_radiographs

QUESTION, ANSWERS = "image : <image> is it ill ? answer :", "no,yes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Radiographs, a block, its question and the finished run of a fold."""
    folder = tmp_path_factory.mktemp("lavin")
    write_radiographs(folder / "images")
    source = llm_models.save(llm_models.tiny("phi3", num_hidden_layers=2), folder / "llm")
    add_tokenizer(source)
    convert(source, "all", folder / "block")
    question_text.convert_question(source, QUESTION, ANSWERS, folder / "question")
    cross_validation.train_and_evaluate(config(folder), folder / "run")
    return folder


def config(folder, **changes):
    own = dict(
        llama__block=str(folder / "block"),
        llama__final_norm="loaded",
        pneumollm__question=str(folder / "question"),
        data__fold=0,
        train__epochs=1,
    )
    return small(folder / "images", "lavin", **{**own, **changes})


def test_finished_run_says_what_was_asked(folder):
    result = json.loads((folder / "run" / "fold0" / "result.json").read_text())
    assert result["boost"] == "lavin"
    assert result["question"]["prompts"] == {"healthy": ["no"], "sick": ["yes"]}
    assert (result["question"]["question"], result["question"]["source"]) == (QUESTION, "llm")
    assert len(result["question"]["sha256"]) == 64
    assert {"vision", "llama"} <= result.keys()
    assert 0 <= result["test"]["auc"] <= 1


def test_prediction_and_export_are_those_of_the_run(folder, tmp_path):
    run = open_run.open_run(folder / "run" / "fold0")
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    probabilities = run.predict(images)
    export.export(run, tmp_path / "export")
    np.testing.assert_allclose(exported.load(tmp_path / "export").predict(images), probabilities, atol=1e-5)


def test_other_weights_are_another_run(folder, tmp_path):
    question_text.convert_question(str(folder / "llm"), QUESTION, "yes,no", tmp_path / "swapped")
    with pytest.raises(UserError, match=r"finished run with the question from llm \(\w+\), not with .*swapped"):
        cross_validation.train_and_evaluate(
            config(folder, pneumollm__question=str(tmp_path / "swapped")), folder / "run"
        )
    with pytest.raises(UserError, match=r"differs in .*pneumollm\.question"):
        cross_validation.train_and_evaluate(config(folder, **_WITHOUT), folder / "run")


_WITHOUT = {"pneumollm__question": "", "pneumollm__adapters": "rep"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pneumollm__question": "nowhere"}, "there is no question at .*nowhere.*--question TEXT --answers ANSWERS"),
        ({"pneumollm__question": ""}, r"pneumollm\.adapters: the modality token"),
        ({"llama__causal": False}, r"llama\.causal: .*set it to True"),
        ({"pneumollm__tokens": "engine"}, r"pneumollm\.tokens: .*set it to none"),
        ({"data__columns": ("age",)}, r"data\.columns: the LLM answers a question, without a head"),
        ({"train__loss": "columns"}, r"train\.loss: .*set it to auto"),
        ({"llama__final_norm": "ones"}, r"llama\.final_norm: .*set it to loaded"),
        ({"model__backbone": "conv14", "pneumollm__vision": ""}, r"model\.backbone: conv14 has no CLS tokens"),
        ({"llama__block": "random", "llama__final_norm": "ones"}, "does not belong to the LLM, which is 64 wide, not"),
        ({"data__multi_label": True, "eval__metric": "auc"}, r"pneumollm\.question: .* is multi-label"),
    ],
)
def test_mistakes(folder, tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as mistake:
        cross_validation.train_and_evaluate(config(folder, **changes), tmp_path / "run")
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "run").exists()
