"""Converts a question about an image, and its answers, into what an LLM has of their tokens.

The checkpoint's own tokenizer runs here, once, by transformers: a run needs neither.
"""

import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxboost
from jaxboost import io, outputs
from jaxboost.convert import manifests, part_file, tokenizers, writer
from jaxboost.convert.formats.gguf_file import GgufTensors
from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.manifest_types import MAX_CHARACTERS, MAX_TOKENS, Answer, QuestionManifest
from jaxboost.convert.part_file import DTYPES
from jaxboost.convert.sources import open_source
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.llama import LlamaSource
from jaxboost.convert.tables.parts import FINAL_NORM, QUESTION, Part
from jaxboost.convert.tables.vocabulary import vocabulary_of
from jaxboost.errors import UserError

# Where the image is in a question. Without it the image is in front of the text.
PLACE = "<image>"
_FILE = ".txt"
_FILES = "tokenizer.json (or vocab.json and merges.txt, or tokenizer.model with the package sentencepiece)"


def convert_question(
    source: str | os.PathLike[str],
    question: str | os.PathLike[str],
    answers: str | Sequence[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> QuestionManifest:
    r"""Converts a question and the answers that stand for the classes of a task.

    What is stored: the embeddings of the question's tokens; of an LLM with learned positions all of these, because the
    number of image tokens is not known here; and for each class the row of the output head that scores the first token
    of its answer. Only these rows are read.

    Example:
      >>> question = "Image: <image>\nQuestion: Is the tumour malignant?\nAnswer:"
      >>> convert_question("HuggingFaceTB/SmolLM2-135M", question, "No,Yes", "blocks/smollm2-question")

    Args:
      source: an LLM with its tokenizer and its output head: a folder in Hugging Face's layout, the id of a repository
        on the hub (owner/name[@revision]), a GGUF file, or package:NAME with one.
      question: the text; PLACE in it is where the image is. Or the path of a file, ending on .txt, with the text.
      answers: one for each class, in the order of the labels, also as text with commas between them.
      out: folder of the result; it appears only when it is complete.
      overwrite: whether an existing converted folder may be replaced.

    Returns:
      The manifest of the result.

    Raises:
      UserError: the source is no LLM with tokenizer and head; two answers begin with the same token; or `out` exists.
    """
    source, out = os.fspath(source), io.user_path(out)
    writer.check_free(out, overwrite=overwrite)
    if os.path.isdir(io.user_path(source)) and outputs.is_inside(out, io.user_path(source)):
        raise UserError(f"--out {out} lies in --source {source}: give a folder elsewhere")
    text, of_classes = _text(question), _answers(answers)
    # Of a BLIP-2 its LLM.
    opened = open_source(source, part="block")
    if not isinstance(opened, LlamaSource):
        raise UserError(f"--source {source} is a vision encoder: give the LLM that answers --question")
    opened.select("-1", final_norm=True)
    vocabulary = vocabulary_of(opened)
    tokens, place, firsts = _tokens(_tokenizer(opened.tensors), text, of_classes, vocabulary.size, source)
    rows, bias = vocabulary.scores(firsts)
    arrays = {"tokens": vocabulary.embeddings(tokens), "answers": rows, "bias": bias}
    arrays["positions"] = vocabulary.learned_positions()
    positions = len(arrays["positions"])
    if positions and len(tokens) >= positions:
        raise UserError(
            f"--question has {len(tokens)} tokens, and {source} has {positions} positions for them and the image: make"
            " it shorter"
        )
    part = Part(
        key=QUESTION,
        shapes=shapes.question_part(
            tokens=len(tokens), answers=len(firsts), width=opened.config.width, positions=positions
        ),
        read=lambda name, dtype: np.asarray(arrays[name], dtype),
    )
    with writer.writing(out, overwrite=overwrite) as folder:
        folder.add(part, DTYPES["float32"], lambda _: None)
        manifest = QuestionManifest(
            source=opened.tensors.source,
            source_format=opened.tensors.source_format,
            question=text,
            tokens=tuple(tokens),
            place=place,
            answers=tuple(Answer(text=each, token=token) for each, token in zip(of_classes, firsts, strict=True)),
            width=opened.config.width,
            positions=positions,
            cap=vocabulary.cap,
            norm={dtype: _norm_of(opened, dtype) for dtype in DTYPES},
            sha256=folder.sha256,
            jaxboost_version=jaxboost.__version__,
        )
        manifests.check(manifest)
        folder.finish(manifest)
    return manifest


def summary(manifest: QuestionManifest, out: str | os.PathLike[str]) -> str:
    """A few lines for the user: what was converted, where it is, and how it is used."""
    count, place = len(manifest.tokens), manifest.place
    return "\n".join(
        [
            f"source    {manifest.source} ({manifest.source_format})",
            f"question  {count} tokens, the image after the first {place}" if place else f"question  {count} tokens",
            f"answers   {', '.join(each.text for each in manifest.answers)}: of the classes in the order of the labels",
            f"wrote     {out}",
            f"use it    --config.pneumollm.question={out}, with all layers of the same LLM as llama.block; of BLIP-2"
            f" --config.blip2.question={out}",
        ]
    )


def _text(question: str | os.PathLike[str]) -> str:
    """The question. Raises UserError if it is empty or too long, or names two places."""
    text = os.fspath(question)
    if text.endswith(_FILE) and "\n" not in text:
        path = io.user_path(text)
        if not os.path.isfile(path):
            raise UserError(f"there is no file {path} with a question: give a file, or the text itself")
        text = _read(path)
    if not text.replace(PLACE, "").strip() or len(text) > MAX_CHARACTERS:
        raise UserError(f"--question: the text is empty, or has more than {MAX_CHARACTERS} characters: give a question")
    if text.count(PLACE) > 1:
        raise UserError(f"--question has {text.count(PLACE)} times {PLACE}: give one place for the image")
    return text


def _read(path: pathlib.Path) -> str:
    try:
        # The last line's end is the editor's.
        return path.read_text("utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8 ({error}): save it again") from error


def _answers(answers: str | Sequence[str]) -> list[str]:
    found = [each.strip() for each in (answers.split(",") if isinstance(answers, str) else answers)]
    if len(found) < 2 or not all(found) or max(map(len, found)) > 1024:
        raise UserError(f"--answers {answers!r:.80}: give an answer for each class, such as No,Yes")
    return found


def _tokenizer(tensors: Any) -> Any:
    _, transformers = tokenizers.import_transformers("a question")
    kind = transformers.AutoTokenizer
    if isinstance(tensors, GgufTensors):
        path = tensors.path
        return tokenizers.load(kind, str(path.parent), "a GGUF file with its tokenizer", gguf_file=path.name)
    assert isinstance(tensors, HuggingFaceTensors), "as `vocabulary_of` has seen"
    if tensors.local_path is not None:
        return tokenizers.load(kind, str(tensors.local_path), _FILES)
    name, _, commit = tensors.source.partition("@")
    return tokenizers.load(kind, name, _FILES, revision=commit)


def _tokens(
    tokenizer: Any, text: str, answers: Sequence[str], size: int, source: str
) -> tuple[list[int], int, list[int]]:
    """The question's tokens, how many are before the image, and the first token of each answer.

    Args:
      tokenizer: of transformers; it may have more tokens than the LLM, which are not used then.
      size: number of the LLM's embeddings.
      text, answers, source: see `convert_question`.
    """

    def numbers(words: str) -> list[int]:
        found = tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
        # OPT's and GPT-2's unknown token is the one that begins a text, which the text may contain.
        unknown = tokenizer.unk_token
        if unknown is not None and found.count(tokenizer.unk_token_id) > words.count(unknown):
            raise UserError(f"{source}: the tokenizer does not know all words of {words!r:.60}: write it otherwise")
        # Some tokenizers drop what they do not know.
        if _letters(tokenizer.decode(found)) != _letters(words):
            raise UserError(
                f"{source}: the tokenizer reads {words!r:.60} as {tokenizer.decode(found)!r:.60}: write it otherwise,"
                " or download the tokenizer again"
            )
        if found and max(found) >= size:
            raise UserError(
                f"{source}: the tokenizer reads {words!r:.60} with the token {max(found)}, and the LLM has {size}"
                " embeddings: download both again from one place"
            )
        return found

    before, placed, after = text.partition(PLACE)
    if not placed:
        before, after = "", text
    start, end = numbers(before), numbers(after)
    first = _first(tokenizer, before or after)
    # A text that begins with this token itself has it already.
    start = [*([] if first and (start or end)[: len(first)] == first else first), *start]
    if not 0 < len(start) + len(end) <= MAX_TOKENS:
        raise UserError(f"--question has {len(start) + len(end)} tokens, more than {MAX_TOKENS}: make it shorter")
    between = "" if not after or after[-1].isspace() else " "
    firsts: list[int] = []
    for answer in answers:
        # As the LLM would read on: the answer's own first token depends on what is before it.
        whole = numbers(after + between + answer)
        if whole[: len(end)] != end or len(whole) == len(end):
            raise UserError(
                f"--question: its last token becomes another one before the answer {answer!r:.40}: end the question"
                " with a word or a mark and no space, such as Answer:"
            )
        number = whole[len(end)]
        if number in firsts:
            other = answers[firsts.index(number)]
            raise UserError(
                f"--answers: {other!r:.40} and {answer!r:.40} begin with the same token"
                f" {tokenizer.convert_ids_to_tokens(number)!r}, and only the first is scored: give answers that differ"
                " there"
            )
        firsts.append(number)
    return [*start, *end], len(start), firsts


def _letters(text: str) -> str:
    """A text without what tokenizers may change: spaces, capitals, and other forms of one character."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _first(tokenizer: Any, text: str) -> list[int]:
    """What the tokenizer puts in front of a text: the token that begins it, or nothing."""
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = tokenizer(text)["input_ids"]
    places = range(len(found) - len(plain) + 1)
    return found[: next((place for place in places if found[place : place + len(plain)] == plain), 0)]


def _norm_of(source: LlamaSource, dtype: str) -> str:
    """The fingerprint of the final norm as `conversion.convert` stores it."""
    names = shapes.llama_part(source.config, FINAL_NORM)
    return part_file.fingerprint({name: source.read(FINAL_NORM, name, DTYPES[dtype]) for name in names})
