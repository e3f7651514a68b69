"""Questions: the rows of an LLM that are stored, against its own next-token scores, and what is refused in one line."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxboost.convert import convert, question_text, questions, store
from jaxboost.errors import UserError
from jaxboost.models.frozen import freeze, merge, split
from jaxboost.models.llama import LlamaBlock
from jaxboost.models.question import Question, QuestionSpec
from jaxboost.models.rngs import make_rngs
from tests.convert.changed_manifests import rewrite
from tests.convert.tokens import WORDS, add_merging_tokenizer, add_tokenizer
from tests.models.parity import assert_close
from tests.reference import llm_models
from tests.scripts import run_inside

QUESTION, ANSWERS = "image : <image> is it ill ? answer :", "no,yes"
# phi3: an output head of its own; gemma2: tied, scaled embeddings and capped scores; gpt2: learned positions.
FAMILIES = {"phi3": {}, "gemma2": {"final_logit_softcapping": 0.7}, "gpt2": {}}


def make(folder, family, **changes):
    changes |= {"n_layer": 2} if family == "gpt2" else {"num_hidden_layers": 2}
    if "layer_types" in llm_models.FAMILIES[family]:
        changes["layer_types"] = ["sliding_attention", "full_attention"]
    model = llm_models.tiny(family, **changes, **FAMILIES[family])
    source = llm_models.save(model, folder / family)
    add_tokenizer(source)
    return model, source


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    _, source = make(folder, "phi3")
    question_text.convert_question(source, QUESTION, ANSWERS, folder / "question")
    return folder


@pytest.fixture
def source(folder, tmp_path):
    """A copy to damage."""
    return shutil.copytree(folder / "phi3", tmp_path / "source")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_whole_model(family, tmp_path):
    model, source = make(tmp_path, family)
    manifest = question_text.convert_question(source, QUESTION, ANSWERS, tmp_path / "question")
    convert(source, "all", tmp_path / "block")
    assert [WORDS[token] for token in manifest.tokens] == ["<s>", "image", ":", "is", "it", "ill", "?", "answer", ":"]
    assert (manifest.place, [WORDS[each.token] for each in manifest.answers]) == (3, ["no", "yes"])
    with torch.no_grad():
        expected = model(torch.tensor([manifest.tokens])).logits[:, -1, [each.token for each in manifest.answers]]

    block = store.load_block(tmp_path / "block", None, final_norm=True)
    questions.check_block(tmp_path, manifest, block.manifest, block.config.width)
    spec = QuestionSpec(
        tokens=len(manifest.tokens), place=manifest.place, answers=2, cap=manifest.cap, positions=manifest.positions
    )

    def built(module, weights):
        graphdef, _, frozen, _ = split(nnx.eval_shape(lambda: freeze(module(make_rngs(0)))))
        assert jax.tree.map(jnp.shape, frozen) == jax.tree.map(jnp.shape, weights)
        return merge(graphdef, {}, jax.tree.map(jax.device_put, weights))

    question = built(lambda rngs: Question(spec, manifest.width, rngs=rngs), questions.load(tmp_path / "question"))
    llm = built(lambda rngs: LlamaBlock(block.config, depth=2, dtype=jnp.float32, rngs=rngs), block.tree())

    @nnx.jit
    def scores(question, llm, image):
        y = llm(question.around(image), rope=block.config.rotary, causal=True)
        return question.scores(y[:, -1])

    assert_close(scores(question, llm, np.zeros((1, 0, manifest.width), np.float32)), expected)


def test_image_is_at_its_place():
    question = Question(QuestionSpec(tokens=3, place=2, answers=2), 4, rngs=make_rngs(0))
    image = np.full((2, 5, 4), 7, np.float32)
    x = np.asarray(nnx.jit(lambda question, image: question.around(image))(question, image))
    np.testing.assert_array_equal(x[:, 2:7], image)
    np.testing.assert_array_equal(x[1, [0, 1, 7]], question.tokens[...])


def test_gguf_has_the_same_rows(folder, tmp_path, monkeypatch):
    model = llm_models.tiny("phi3", num_hidden_layers=2)
    source = llm_models.write_gguf(model, tmp_path / "model.gguf")
    # The tokenizer of such a file is read by transformers, as in the quick start's package.
    monkeypatch.setattr(question_text.tokenizers, "load", lambda kind, *_, **__: kind.from_pretrained(folder / "phi3"))
    of_gguf = question_text.convert_question(source, QUESTION, ANSWERS, tmp_path / "question")
    expected = questions.read_manifest(folder / "question")
    assert (of_gguf.sha256, of_gguf.norm, of_gguf.tokens) == (expected.sha256, expected.norm, expected.tokens)


def test_command_and_text_file(folder, tmp_path):
    (tmp_path / "question.txt").write_text(QUESTION + "\n")
    arguments = ("--source", folder / "phi3", "--out", tmp_path / "out")
    done = run_inside("convert_weights.py", *arguments, "--question", tmp_path / "question.txt", "--answers", "no, yes")
    assert done.returncode == 0, done.stderr
    assert questions.fingerprint_at(tmp_path / "out") == questions.fingerprint_at(folder / "question")
    assert "9 tokens, the image after the first 3" in done.stdout
    for flags, words in (
        (("--question", QUESTION), "--answers is missing"),
        (("--question", QUESTION, "--answers", ANSWERS, "--layers", "all"), "--layers is not for a question"),
    ):
        refused_ = run_inside("convert_weights.py", *arguments, *flags)
        assert (refused_.returncode, words in refused_.stderr) == (2, True), refused_.stderr


def refused(source, message, tmp_path, question=QUESTION, answers=ANSWERS):
    with pytest.raises(UserError, match=message) as caught:
        question_text.convert_question(str(source), question, answers, tmp_path / "out" / "question")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("question", "answers", "message"),
    [
        (QUESTION, "yes, yes", "'yes' and 'yes' begin with the same token 'yes'"),
        (QUESTION, "yes so,yes", "'yes so' and 'yes' begin with the same token 'yes'"),
        (QUESTION, "yes", "--answers 'yes': give an answer for each class"),
        (QUESTION, "no,,yes", "give an answer for each class"),
        (QUESTION, "no,perhaps", "does not know all words of"),
        (" <image> ", ANSWERS, "the text is empty"),
        (f"<image> {QUESTION}", ANSWERS, "2 times <image>"),
        ("nowhere.txt", ANSWERS, "there is no file .*nowhere.txt"),
    ],
)
def test_mistakes(question, answers, message, folder, tmp_path):
    refused(folder / "phi3", message, tmp_path, question, answers)


def test_damaged_sources(source, tmp_path):
    for path in source.glob("tokenizer*"):
        path.rename(path.with_suffix(".away"))
    refused(source, r"has no tokenizer.*: download tokenizer\.json", tmp_path)
    add_tokenizer(source)
    weights = load_file(source / "model.safetensors")
    save_file(
        {name: array for name, array in weights.items() if name != "lm_head.weight"}, source / "model.safetensors"
    )
    refused(source, r"has no output head \(lm_head\.weight\).*CausalLM", tmp_path)
    save_file(weights, source / "model.safetensors")
    cut(source, 9)
    refused(source, "source: the tokenizer reads .* with the token 10, and the LLM has 9 embeddings: downl", tmp_path)


def cut(source, size):
    """Leaves the first embeddings and rows of the head alone."""
    weights = load_file(source / "model.safetensors")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    save_file(weights | {name: weights[name][:size] for name in names}, source / "model.safetensors")


def test_a_tokenizer_with_more_tokens_than_the_llm(folder, source, tmp_path):
    cut(source, 13)
    found = question_text.convert_question(str(source), QUESTION, ANSWERS, tmp_path / "question")
    assert found.sha256 == questions.read_manifest(folder / "question").sha256


@pytest.mark.parametrize(
    ("question", "before", "after", "answers"),
    [
        # A space goes before the answer, and is part of its token.
        ("il <image>:", ["</s>", "i", "l", "Ġ"], [":"], ["ĠNo", "ĠYes"]),
        ("il:\n", ["</s>"], ["i", "l", ":", "Ċ"], ["No", "Yes"]),
        # As BLIP-2 has it: the image, then the token that begins a text, which is the unknown one too.
        ("<image></s>il:", [], ["</s>", "i", "l", ":"], ["ĠNo", "ĠYes"]),
    ],
)
def test_spaces_and_merges(question, before, after, answers, source, tmp_path):
    add_merging_tokenizer(source)
    found = question_text.convert_question(str(source), question, "No,Yes", tmp_path / "question")
    names = transformers.AutoTokenizer.from_pretrained(source).convert_ids_to_tokens
    assert names([each.token for each in found.answers]) == answers
    assert (names(list(found.tokens)), found.place) == (before + after, len(before))


def test_refused_merges(source, tmp_path):
    add_merging_tokenizer(source)
    refused(source, "its last token becomes another one before the answer 'No'", tmp_path, "il: ", "No,Yes")
    refused(source, "does not know all words of '</s>ill, i", tmp_path, "<image></s>ill, il:", "No,Yes")


def test_a_question_that_fills_the_positions(tmp_path):
    _, source = make(tmp_path, "gpt2", n_positions=9)
    refused(source, "--question has 9 tokens, and .* has 9 positions for them and the image", tmp_path)


def test_question_of_another_llm_or_other_classes(folder, tmp_path):
    path, manifest = folder / "question", questions.read_manifest(folder / "question")
    other = convert(llm_models.save(llm_models.tiny("phi3", seed=1), tmp_path / "other"), "-1", tmp_path / "block")
    with pytest.raises(UserError, match=r"\(phi3\) does not belong to the block of other, which has other weights"):
        questions.check_block(path, manifest, other, manifest.width)
    with pytest.raises(UserError, match="does not belong to the LLM, which is 64 wide, not 48"):
        questions.check_block(path, manifest, None, 64)
    with pytest.raises(UserError, match=r"has 2 answers \('no', 'yes'\), and the data set has 3 classes"):
        questions.check_classes(path, manifest, ("a", "b", "c"))
    changed = shutil.copytree(path, tmp_path / "changed")
    rewrite(changed, lambda fields: fields.update(place=99))
    with pytest.raises(UserError, match="place 99 is behind the 9 tokens"):
        questions.read_manifest(changed)
    (changed / "question.safetensors").write_bytes(b"")
    (changed / "manifest.json").write_text((path / "manifest.json").read_text())
    with pytest.raises(UserError, match="altered or truncated"):
        questions.load(changed)
    with pytest.raises(UserError, match="holds a question, not a block"):
        store.read_manifest(path)
    assert json.loads((path / "manifest.json").read_text())["answers"][1] == {"text": "yes", "token": 12}
