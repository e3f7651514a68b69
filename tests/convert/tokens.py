"""A tokenizer of whole words, beside a tiny LLM."""

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
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    # Else transformers takes the class that belongs to the LLM's family.
    config = Path(folder) / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
