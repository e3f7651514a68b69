"""Adapters (LoRA and similar, as the package peft saves them) that were not merged into the weights."""

import json
import reprlib
from collections.abc import Collection, Iterable
from typing import Any

from jaxboost.errors import UserError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PARTS = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_magnitude_vector.", ".base_layer.", ".ia3_l.")


def is_alone(files: Collection[str], weight_files: Collection[str]) -> bool:
    """Whether a folder holds an adapter, and no weights of a model."""
    return (CONFIG in files or not set(WEIGHTS).isdisjoint(files)) and set(files).isdisjoint(weight_files)


def refuse_folder(where: str, config: bytes) -> None:
    """Raises UserError for a folder that holds only an adapter.

    Args:
      where: the folder, a path or an id, as peft takes it.
      config: text of its CONFIG, empty if there is none.
    """
    base, task = _entry(config, "base_model_name_or_path"), _entry(config, "task_type")
    known = isinstance(base, str) and 0 < len(base) < 200 and base.isprintable()
    if task == "CAUSAL_LM":
        load = f"from peft import AutoPeftModelForCausalLM as M; model = M.from_pretrained('{where}')"
    else:
        load = (
            "from peft import PeftModel; from transformers import AutoModel; "
            f"model = PeftModel.from_pretrained(AutoModel.from_pretrained('{base if known else 'BASE'}'), '{where}')"
        )
    raise UserError(
        f"{where} holds an adapter{f' of {reprlib.repr(base)}' if known else ''}, not a model: merge first, with "
        f"`python -c \"{load}; model.merge_and_unload().save_pretrained('merged')\"`, then pass the folder merged"
        "; or, if it is a LoRA, give its model as --source and its folder as --adapter"
    )


def check(names: Iterable[str], where: str) -> None:
    """Raises UserError if the tensor names include adapters that are not merged."""
    found = next((name for name in names if any(part in f"{name}." for part in _PARTS)), None)
    if found is not None:
        raise UserError(
            f"{where} holds an adapter that is not merged into its weights ({found:.100}): merge first, with "
            "`model.merge_and_unload().save_pretrained('merged')` of the peft model, then pass the folder merged"
        )


def _entry(text: bytes, key: str) -> Any:
    try:
        return json.loads(text).get(key)
    except (ValueError, RecursionError, AttributeError):
        return None
