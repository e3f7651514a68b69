"""`describe` of PneumoLLM: the paper's counts, its tables' rows, and the memory of a step."""

import importlib

import pytest

from jaxboost.analysis.describe import as_text, describe
from jaxboost.config import pneumollm


def _config(argument: str = "", leaf: str = "pneumollm"):
    return importlib.import_module(f"configs.{leaf}").get_config(argument)


# The neck and the head, always: 659,584 + 8,192. Adapters: 319,680 in CLIP, 1,704,192 in LLaMA. Engine: 12,352.
ROWS = {
    "": (2_704_000, 10),
    "full": (2_704_000, 10),
    "baseline": (667_776, 6),
    "simplified": (2_691_648, 6),
    "coop": (2_691_648 + 4 * 1024, 10),
    "cocoop": (2_691_648 + 4 * 1024 + 2 * 1024 * 64 + 64 + 1024, 10),
    "engine": (2_704_000, 10),
    "no_llama": (2_704_000 - 1_704_192, 10),
    "random_llama": (2_704_000, 10),
    "m1": (2_704_000 - 3 * 13, 7),
    "m2": (2_704_000 - 2 * 13, 8),
    "m4": (2_704_000, 10),
    "m6": (2_704_000 + 2 * 13, 12),
    "m8": (2_704_000 + 4 * 13, 14),
    "conv14": (2_704_000 - 319_680 + 588 * 1024 + 1024, 256 + 4),
    # A narrower encoder: 768 instead of 1024 before neck, adapters and engine; 12 blocks.
    "vit_b16": (1_704_192 + 12 * (768 * 8 + 8 + 4 * 768 + 768) + (768 * 128 + 128 + 128 * 4096 + 4096) + 8192
                + (768 * 12 + 12 + 12 * 4 + 4), 10),
    "vit_l16": (2_704_000, 10),
    "clip_vit_l14": (2_704_000, 10),
    "reference": (2_704_000, 10),
    # The paper's 3.77 M; six image tokens, and as many of a question as one without a folder is taken to have.
    "lavin": (3_777_200, 6 + 24),
}  # fmt: skip


def test_every_row_is_listed():
    assert set(ROWS) == {"", "reference", *pneumollm.ROWS}


@pytest.mark.parametrize("row", ROWS)
def test_trained_parameters_and_tokens(row):
    result = describe(_config(row))
    assert (result["trainable"], result["tokens"]) == ROWS[row]


def test_the_papers_configuration():
    result = describe(_config())
    assert result["trainable"] == 2_704_000
    assert result["frozen"] == 32 * 202_383_360 + 4096 + 303_177_728
    assert (result["dataset"], result["boost"], result["classes"]) == ("radiographs", "pneumollm", 2)
    assert result["flops_per_image"]["with_boost"] > result["flops_per_image"]["without_boost"] > 0


def test_an_unknown_row_is_named():
    with pytest.raises(ValueError, match="unknown row 'engin': give one of baseline, simplified"):
        _config("engin")


def test_step_memory_of_the_quick_start():
    """Frozen weights are held once: the step's arguments are not much more than they."""
    result = describe(_config(leaf="pneumollm_quickstart"), memory=True)
    memory = result["step_memory_gb"]
    weights = 4 * (result["frozen"] + 3 * result["trainable"]) / 1e9
    assert weights < memory["weights"] < weights + 0.02
    assert memory["total"] == pytest.approx(memory["weights"] + memory["temporary"], abs=2e-3)
    assert f"{memory['total']:.2f} GB of memory estimated" in as_text(result)
