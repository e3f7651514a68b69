"""Finds all problems of a config before data or weights are loaded."""

import types
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxboost.config.continuing import flat
from jaxboost.config.fields import MAX_STEPS, Field
from jaxboost.config.table import fields_of
from jaxboost.errors import UserError, check_choice, nearest

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_MISSING = (
    "config field {name} is missing: start from jaxboost.config.get_config(), get_pneumollm_config(),"
    " get_clip_config(), get_blip2_config() or get_baseline_config()"
)
_MAX_ENTRIES = 10_000  # of a tuple, such as classes
# The type of a default -> the types that a value may have, and their name in a message.
_TYPES: Mapping[type, tuple[tuple[type, ...], str]] = types.MappingProxyType(
    {
        bool: ((bool,), "True or False"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a number"),
        str: ((str,), "text"),
        tuple: ((list, tuple), "a tuple"),
    }
)


def validate(config: ConfigDict) -> None:
    """Checks everything in a config that can be checked without data and weights.

    Example::

      config = jaxboost.load_config("quickstart")
      config.train.epochs = 0
      validate(config)  # UserError: config field train.epochs: 0 should be above 0

    Raises:
      UserError: one message with all problems: unknown or missing fields, wrong types, numbers out of range, unknown
        choices, and fields that contradict each other.
    """
    if found := problems(config):
        raise UserError("; ".join(found))


def validate_present(config: ConfigDict) -> None:
    """Like `validate`, for a config that may lack fields: that of a finished run, as far as a prediction reads it.

    Raises:
      UserError: see `validate`; a missing field is no problem.
    """
    if found := problems(config, may_lack_fields=True):
        raise UserError("; ".join(found))


def check_steps(config: Any, steps_per_epoch: int) -> None:
    """Raises UserError if the run has more steps than the training state can count, or too few for one update."""
    lengths = {"train.epochs": config.train.epochs, "optim.schedule_epochs": config.optim.schedule_epochs}
    for name, epochs in lengths.items():
        if epochs * steps_per_epoch > MAX_STEPS:
            raise UserError(
                f"config field {name}: {epochs} epochs of {steps_per_epoch} steps are more than {MAX_STEPS} steps:"
                " give fewer"
            )
    steps, accumulate = config.train.epochs * steps_per_epoch, config.train.accumulate
    if steps < accumulate:
        raise UserError(
            f"config field train.accumulate: {accumulate} is more than the {steps} steps of all epochs, nothing would"
            " be trained: give a smaller number, or more train.epochs"
        )


def problems(config: ConfigDict, *, may_lack_fields: bool = False) -> list[str]:
    """The problems of a config, one text each; see `validate` and `validate_present`."""
    from jaxboost.config.combinations import combination_problems

    fields, values = fields_of(config), flat(config)
    unknown = [f"config field {name} is unknown: {nearest(name, fields)}" for name in values if name not in fields]
    wrong: dict[str, str] = {}
    for name, field in fields.items():
        text = _field_problem(name, field, values[name]) if name in values else _MISSING.format(name=name)
        if text:
            wrong[name] = text
    # A combination is checked only if all of its fields are there and right.
    texts = [text for name, text in wrong.items() if name in values or not may_lack_fields]
    return [*unknown, *texts, *combination_problems(config, wrong)]


def type_in_words(value: Any) -> str:
    """What the value of a field should be, in words, from a value of the right type."""
    return _TYPES[type(value)][1] if type(value) in _TYPES else type(value).__name__


def _field_problem(name: str, field: Field, value: Any) -> str:
    """The problem of one field, empty if there is none."""
    allowed, words = _TYPES[type(field.default)]
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        return f"config field {name}: {value!r} should be {words}"
    if text := _number_problem(name, field, value):
        return text
    if field.choices and not (field.optional and not value):
        try:
            check_choice(str(value), field.allowed(), f"config field {name}")
        except UserError as error:
            return str(error)
    return ""


def _number_problem(name: str, field: Field, value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > _MAX_ENTRIES:
        return f"config field {name}: {len(value)} entries should be at most {_MAX_ENTRIES}"
    for number in _numbers(value):
        # Not the other way round: every comparison with NaN is false.
        if not abs(number) <= _FLOAT32_MAX:
            shown = number if isinstance(number, float) else "a number with this many digits"
            return f"config field {name}: {shown} is not finite in float32, give a smaller number"
        if field.range and (wanted := field.range.wanted(number)):
            return f"config field {name}: {number} should be {wanted}"
    return ""


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
