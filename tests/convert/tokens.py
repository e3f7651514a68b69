"""Tokenizers beside a tiny LLM: of whole words, and of bytes with merges."""

import json
from pathlib import Path

import tokenizers
import transformers

WORDS = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "image",
    ":",
    "is",
    "it",
    "ill",
    "?",
    "answer",
    "no",
    "yes",
    "never",
    "so",
    "</p>",
)


def add_tokenizer(folder: str | Path, *, begins: bool = True) -> None:
    """Writes the files of a tokenizer for up to len(WORDS) tokens, which puts <s> first if `begins`."""
    numbers = {word: number for number, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if begins:
        words.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    _save(words, folder, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def add_merging_tokenizer(folder: str | Path) -> None:
    """Writes a byte-level BPE like OPT's: a space is part of a word, and "</s>" begins a text and is unknown."""
    merges = [("N", "o"), ("Ġ", "No"), ("Y", "e"), ("Ye", "s"), ("Ġ", "Yes")]
    words = ["</s>", *"NoYesil:?ĠĊ", *(first + second for first, second in merges)]
    numbers = {word: number for number, word in enumerate(words)}
    merging = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, merges, unk_token="</s>"))
    merging.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    merging.decoder = tokenizers.decoders.ByteLevel()
    merging.post_processor = tokenizers.processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 0)])
    _save(merging, folder, bos_token="</s>", eos_token="</s>", unk_token="</s>")


def _save(tokenizer: tokenizers.Tokenizer, folder: str | Path, **special: str) -> None:
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    # Else transformers takes the class that belongs to the LLM's family.
    config = Path(folder) / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
