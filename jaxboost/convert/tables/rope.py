"""Rotary frequency scaling: what a checkpoint's configuration says -> `LlamaConfig.rope_factors`.

R-LLM runs its layers without the rotary embedding, so a checkpoint with an unknown scaling can be converted. The
scaling is recorded, and a model that needs the rotary embedding refuses the block.
"""

import math
import reprlib
from typing import Any

import numpy as np

from jaxboost.convert.formats.settings import Settings
from jaxboost.errors import UserError

# Kinds of layers, by their attention.
FULL, SLIDING = "full_attention", "sliding_attention"
# Names of the kind of Phi-3's models with a long context; "su" is the older one.
_LONG = ("longrope", "su")
_CONTEXTS = ("max_position_embeddings", "original_max_position_embeddings")


def of_config(settings: Settings, *, head_dim: int, base: float = 1e4, kind: str = "") -> dict[str, Any]:
    """`rope_base`, and what `fields` gives, from config.json.

    Args:
      settings: config.json.
      head_dim: K.
      base: the base if config.json has none.
      kind: of the layers, FULL or SLIDING, if the kinds rotate differently (Gemma 3).
    """
    # Since transformers 5 one section holds the base and the scaling; before, there were two.
    scaling = (
        settings.section("rope_parameters") if settings.get("rope_parameters") else settings.section("rope_scaling")
    )
    if kind in scaling.values:
        scaling = scaling.section(kind)
        base = scaling.number("rope_theta", base)
    elif kind == SLIDING:
        # Before transformers 5, the scaling was that of the other layers alone.
        scaling, base = Settings({}, settings.where), settings.number("rope_local_base_freq", base)
    else:
        base = scaling.number("rope_theta", settings.number("rope_theta", base))
    rotated = [section.number("partial_rotary_factor", 1.0) for section in (settings, scaling)]
    if min(rotated) != 1 or max(rotated) != 1:
        return {"rope_base": base, **partial(f"a fraction of {min(rotated)}")}
    if _kind(scaling) in _LONG:
        if kind:
            return {"rope_base": base, **_unsupported(f"{reprlib.repr(_kind(scaling))} beside another rotation")}
        # Phi-3 has the original context beside the scaling; where both are, this one counts.
        beside = {key: settings.values[key] for key in _CONTEXTS if settings.get(key) is not None}
        scaling = Settings({**scaling.values, **beside}, scaling.where)
    return {"rope_base": base, **fields(scaling, head_dim=head_dim, rope_base=base)}


def fields(scaling: Settings, *, head_dim: int, rope_base: float) -> dict[str, Any]:
    """`rope_factors` and `rope_unsupported` of `LlamaConfig`, at least one of them None.

    Args:
      scaling: Hugging Face's `rope_parameters` or `rope_scaling` (`rope_type`, formerly `type`, and its numbers). For
        longrope with the model's contexts too, `max_position_embeddings` and `original_max_position_embeddings`.
      head_dim: K.
      rope_base: base of the unscaled frequencies.

    Returns:
      rope_factors: the divisors of the K/2 inverse frequencies, None if they are not scaled. rope_unsupported: the
      scaling in words, if it is of another kind than "default", "linear", "llama3" and "longrope", or a longrope
      without short factors. For longrope also `rope_magnitude` and `rope_limit`.

    Raises:
      UserError: the kind of scaling is not a text, or numbers of a known kind are missing.
    """
    kind, factors = _kind(scaling), None
    if kind in _LONG:
        return _longrope(scaling, head_dim=head_dim)
    if kind == "linear":
        factors = linear_factors(head_dim=head_dim, factor=scaling.number("factor"))
    elif kind == "llama3":
        factors = llama3_factors(
            head_dim=head_dim,
            rope_base=rope_base,
            factor=scaling.number("factor"),
            low_freq_factor=scaling.number("low_freq_factor"),
            high_freq_factor=scaling.number("high_freq_factor"),
            original_context=scaling.number("original_max_position_embeddings"),
        )
    elif kind != "default":
        return _unsupported(reprlib.repr(kind))
    return {"rope_factors": factors, "rope_unsupported": None}


def partial(fraction: str) -> dict[str, Any]:
    """As `fields`, for heads that are rotated in part; `fraction` is that part in words."""
    return {"rope_factors": None, "rope_unsupported": f"the rotation of a part of each head ({fraction})"}


def _unsupported(kind: str) -> dict[str, Any]:
    return {"rope_factors": None, "rope_unsupported": f"the rotary scaling {kind}"}


def _longrope(scaling: Settings, *, head_dim: int) -> dict[str, Any]:
    """LongRoPE (Ding et al. 2024) for texts that are no longer than the context before the extension.

    The factors of longer texts are other ones, so that these have no rotation here. Cosine and sine are multiplied by
    sqrt(1 + ln(s) / ln(o)) for a context that grew s-fold from o tokens, also for short texts.
    """
    factors = scaling.get("short_factor")
    if factors is None:
        return _unsupported(reprlib.repr(_kind(scaling)))
    if not isinstance(factors, list) or not all(type(each) in (int, float) for each in factors):
        raise UserError(
            f"{scaling.where}: 'short_factor' is {reprlib.repr(factors)} instead of {head_dim // 2} numbers: download"
            " it again"
        )
    limit = 1 << 24
    context = scaling.integer("max_position_embeddings", scaling.get("original_max_position_embeddings"), limit=limit)
    original = scaling.integer("original_max_position_embeddings", context, limit=limit)
    factor = scaling.number("factor", context / original)
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return {
        "rope_factors": tuple(map(float, factors)),
        "rope_unsupported": None,
        "rope_magnitude": scaling.number("attention_factor", default),
        "rope_limit": original,
    }


def _kind(scaling: Settings) -> str:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if not isinstance(kind, str):
        raise UserError(f"{scaling.where}: the kind of rotary scaling is {reprlib.repr(kind)} instead of a name")
    return kind


def linear_factors(*, head_dim: int, factor: float) -> tuple[float, ...]:
    """Position interpolation (Chen et al. 2023): all K/2 inverse frequencies are divided by `factor`."""
    return (factor,) * (head_dim // 2)


def llama3_factors(
    *,
    head_dim: int,
    rope_base: float,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_context: float,
) -> tuple[float, ...]:
    """LLaMA 3.1's rule: long wavelengths (in tokens) are stretched by `factor`, short ones are kept.

    Wavelengths below original_context / high_freq_factor are kept, those above original_context / low_freq_factor are
    multiplied by `factor`, and between them the inverse frequency is interpolated linearly in original_context /
    wavelength.
    """
    inverse_frequencies = rope_base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wavelengths = 2 * np.pi / inverse_frequencies
    kept = (original_context / wavelengths - low_freq_factor) / (high_freq_factor - low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return tuple((1.0 / (kept + (1.0 - kept) / factor)).tolist())
