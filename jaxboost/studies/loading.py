"""Finds study files by name or path, and checks that a study fits together."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from jaxboost.config import loading
from jaxboost.data.sources.folder import contents
from jaxboost.data.sources.folder.source import SOURCE
from jaxboost.errors import UserError, nearest
from jaxboost.studies.study import CONTROL, LADDER, SWEEP, Arm, Study

# Names of arms are names of folders on every system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def load_study(name_or_path: str) -> Study:
    """Loads a study.

    Args:
      name_or_path: the name of a packaged study, such as "ladder", or the path of a Python file with a function
        `get_study`. An argument for that function may follow after a colon.

    Raises:
      UserError: there is no such study, it cannot be executed, or it does not fit together.
    """
    study = loading.execute(name_or_path, loading.STUDY)
    if not isinstance(study, Study):
        raise UserError(f"study {name_or_path}: get_study returns {type(study).__name__}, not a Study")
    check(study, name_or_path)
    return study


def suited(name_or_path: str, overrides: Mapping[str, str]) -> str:
    """The name of a study with the argument that suits the overrides, if the study chooses it and none is given.

    A study file chooses it by a function `default_argument(overrides)`, which returns the argument or "".

    Args:
      name_or_path: see `load_study`.
      overrides: dotted field -> text, as on the command line.

    Raises:
      UserError: see `load_study`; or a folder that the overrides name cannot be read.
    """
    return loading.with_default_argument(name_or_path, overrides, loading.STUDY)


def folder_argument(overrides: Mapping[str, str]) -> str:
    """For studies of volumes with the argument "2d": "2d" if the overrides name a folder with images, else "".

    Args:
      overrides: dotted field -> text, as on the command line.

    Raises:
      UserError: the folder cannot be read.
    """
    if overrides.get("data.source") != SOURCE:
        return ""
    found = contents.read(overrides.get("data.root", ""), masks=overrides.get("data.masks", ""))
    return "2d" if found.ndim == 2 else ""


def with_columns(argument: str, overrides: Mapping[str, str]) -> str:
    """The argument of a study with "+columns", or "columns", if the overrides name clinical columns."""
    named = overrides.get("data.columns", "").strip("()[] ")
    return "+".join(filter(None, (argument, "columns" if named else "")))


def check(study: Study, name: str) -> None:
    """Raises UserError that names all that does not fit together in a study, called `name`."""
    if found := list(problems(study)):
        raise UserError(f"study {name}: {'; '.join(found)}")


def problems(study: Study) -> Iterator[str]:
    """Yields what does not fit together in a study, apart from its configs."""
    names = [arm.name for arm in study.arms]
    if not names:
        yield "it has no arms"
        return
    for name, count in Counter(names).items():
        if not _NAME.fullmatch(name):
            yield f"arm {name!r}: a name has letters, digits, '-', '_' and '.', at most 64, as a folder is called so"
        if count > 1:
            yield f"arm {name!r} is there {count} times: give each arm a name of its own"
    for number, arm in enumerate(study.arms):
        yield from _of_arm(arm, names[:number], study)
    for comparison in study.comparisons:
        for name in (comparison.arm, comparison.reference):
            if name not in names:
                yield f"a comparison names arm {name!r}, which is not there: {nearest(name, names)}"
        if comparison.arm == comparison.reference:
            yield f"arm {comparison.arm!r} is compared with itself"
    if sum(comparison.main for comparison in study.comparisons) > 1:
        yield "more than one comparison is the main one: the verdict is about one"
    if study.seeds < 1:
        yield f"seeds={study.seeds}: give 1 or more"
    if any(not rate > 0 for rate in study.lr_grid):
        yield f"lr_grid={tuple(study.lr_grid)}: learning rates are above 0"


def _of_arm(arm: Arm, before: list[str], study: Study) -> Iterator[str]:
    if arm.group not in (LADDER, CONTROL, SWEEP):
        yield f"arm {arm.name!r}: its group {arm.group!r} is none of {LADDER}, {CONTROL}, {SWEEP}"
    if arm.seeds is not None and arm.seeds < 1:
        yield f"arm {arm.name!r}: seeds={arm.seeds}: give 1 or more"
    if not arm.after:
        return
    if arm.after not in before:
        yield f"arm {arm.name!r} evaluates arm {arm.after!r} again, which has to come before it"
    elif study.arm(arm.after).after:
        yield f"arm {arm.name!r} evaluates arm {arm.after!r} again, which is no trained run itself"
    if arm.tuned:
        yield f"arm {arm.name!r} evaluates runs again: there is no learning rate to tune"
