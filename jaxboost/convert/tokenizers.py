"""Tokenizers of checkpoints, by transformers. Only conversions of texts need them."""

import functools
from typing import Any

from jaxboost.errors import UserError, missing_extra


@functools.cache
def import_transformers(what: str) -> tuple[Any, Any]:
    """The modules torch and transformers. Raises UserError if they are not installed; `what` needs them."""
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise UserError(f"{what} needs transformers and torch: {missing_extra('clip')}") from error
    return torch, transformers


def load(kind: Any, where: str, files: str, **options: str) -> Any:
    """The tokenizer of a checkpoint.

    Args:
      kind: class of transformers.
      where: a folder, or the id of a repository on the hub.
      files: what has to be there, for the message.
      **options: of `from_pretrained`.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    advice = f"download {files}, from the same place as the weights"
    try:
        # Never run code of a checkpoint, and never ask the user for it.
        found = kind.from_pretrained(where, trust_remote_code=False, **options)
    # transformers says with many types that a file is missing or broken.
    except Exception as error:
        raise UserError(
            f"{where} has no tokenizer that transformers can read ({type(error).__name__}): {advice}"
        ) from error
    # Without files, transformers makes a tokenizer of nothing but the special tokens.
    if len(found) <= len(found.all_special_ids) + 1:
        raise UserError(f"{where} has no tokenizer: {advice}")
    return found
