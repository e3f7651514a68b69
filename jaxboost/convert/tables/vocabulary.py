"""The rows of an LLM that belong to tokens: their embeddings, and the rows of the output head that score them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxboost.convert.formats.gguf_file import GgufTensors
from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.tables import llm_families
from jaxboost.convert.tables.llama import LlamaSource
from jaxboost.convert.tables.parts import check_tensors
from jaxboost.errors import UserError

# Names of the head in Hugging Face's layout; the second of models with a vision encoder.
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
_GGUF_HEADS = ("output.weight",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Where the rows of the tokens are.

    Attributes:
      tensors: the checkpoint.
      size: number of rows, V.
      embedding: name of the token embeddings (V, D).
      head: name of the output head (V, D), that of the embeddings if the two are tied.
      bias: name of the head's bias (V,), None if there is none.
      scale: the LLM multiplies the embeddings by it before its first layer.
      cap: c: scores s become c tanh(s / c); None: they stay as they are.
      positions: name of the learned positions, "" without them.
      first_position: see `llama_names.Layout`.
    """

    tensors: HuggingFaceTensors | GgufTensors
    size: int
    embedding: str
    head: str
    bias: str | None
    scale: float
    cap: float | None
    positions: str = ""
    first_position: int = 0

    def embeddings(self, tokens: Sequence[int]) -> np.ndarray:
        """What the first layer sees of tokens, without positions: (T, D) in float32. Only these rows are read."""
        return np.asarray(self.tensors.read_rows(self.embedding, tokens), np.float32) * np.float32(self.scale)

    def scores(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The rows (C, D) of the head that score tokens, and their biases (C,), both in float32."""
        rows = np.asarray(self.tensors.read_rows(self.head, tokens), np.float32)
        if self.bias is None:
            return rows, np.zeros(len(rows), np.float32)
        return rows, np.asarray(self.tensors.read_rows(self.bias, tokens), np.float32)

    def learned_positions(self) -> np.ndarray:
        """What is added to the tokens at all positions, from the first on: (P, D) in float32; P is 0 without them."""
        if not self.positions:
            return np.zeros((0, self.tensors.info(self.embedding).shape[1]), np.float32)
        return np.asarray(self.tensors.read(self.positions)[self.first_position :], np.float32)


def vocabulary_of(source: LlamaSource) -> Vocabulary:
    """The rows of an LLM's tokens.

    Raises:
      UserError: the checkpoint lacks embeddings or head, they have another shape, or its layout is not read here.
    """
    tensors, width = source.tensors, source.config.width
    embedding = source.layout.embedding
    if isinstance(tensors, GgufTensors):
        heads, tied, scale, cap = _GGUF_HEADS, True, 1.0, None
    elif isinstance(tensors, HuggingFaceTensors):
        heads, (tied, scale, cap) = _HEADS, _constants(tensors, width)
    else:
        raise UserError(
            f"{tensors.source} is a folder in Meta's layout, whose tokenizer transformers does not read: give Hugging"
            " Face's copy of the model for --question"
        )
    if embedding not in tensors.names:
        raise UserError(
            f"{tensors.source} has no token embeddings ({embedding}): download the whole model for --question"
        )
    head = next((name for name in heads if name in tensors.names), embedding if tied else None)
    if head is None:
        raise UserError(
            f"{tensors.source} has no output head ({heads[0]}), which scores the answers: give the model with its"
            " language-model head (...ForCausalLM) for --question"
        )
    rows = tensors.info(embedding).shape[0]
    wanted: dict[str, tuple[int, ...]] = {embedding: (rows, width), head: (rows, width)}
    bias = f"{head.removesuffix('.weight')}.bias" if head in heads else None
    if bias in tensors.names:
        wanted[str(bias)] = (rows,)
    positions = source.layout.positions
    if positions:
        # Their number is not an entry of the layers' configuration.
        count = tensors.info(positions).shape[0] if positions in tensors.names else 0
        wanted[positions] = (max(count, source.layout.first_position + 1), width)
    check_tensors(
        tensors,
        wanted,
        [],
        part="the embeddings and the output head",
        whole="embeddings and an output head of the width of its layers",
        kind="checkpoint of a known LLM family",
    )
    return Vocabulary(
        tensors=tensors,
        size=rows,
        embedding=embedding,
        head=head,
        bias=bias if bias in wanted else None,
        scale=scale,
        cap=cap,
        positions=positions,
        first_position=source.layout.first_position,
    )


def _constants(tensors: HuggingFaceTensors, width: int) -> tuple[bool, float, float | None]:
    """Whether head and embeddings are tied, the scale of the embeddings, and the cap of the scores."""
    found = llm_families.family_of(tensors.settings)
    assert found is not None, "a source of a known family"
    family, settings = found
    # A model with a vision encoder may say it in both places.
    said: list[Any] = [each.get("tie_word_embeddings") for each in (settings, tensors.settings)]
    tied = next((bool(each) for each in said if each is not None), family.tied)
    cap = None
    if family.score_cap is not None or settings.get("final_logit_softcapping") is not None:
        is_null = "final_logit_softcapping" in settings.values and settings.get("final_logit_softcapping") is None
        cap = None if is_null else settings.number("final_logit_softcapping", family.score_cap)
    return tied, width**0.5 if family.scaled_embeddings else 1.0, cap
