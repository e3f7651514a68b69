"""The ladder and all controls on one data set, in one report: the studies of RESULTS.md.

    jaxboost study --study complete --out DIR --jobs 2 --config.data.name=vesselmnist3d
    jaxboost study --study complete:2d+pretrained --out DIR --jobs 2 --config.data.name=breastmnist

Without a data set it takes the nodule shapes of LIDC-IDRI. Arguments: see `ladder`.

Cost, estimated for two CPU cores: about an hour for some 1,400 volumes of 28^3.
Expected: as in `ladder` and `controls`.
"""

import dataclasses
from collections.abc import Mapping

from jaxboost.studies.loading import folder_argument, load_study, with_columns
from jaxboost.studies.study import Comparison, Study

# Arms of the controls that the ladder has under another name.
_SAME = {"none": "plain", "rllm": "rllm"}
# The ladder's random block is the control "random".
_LEFT_OUT = "random_block"


def default_argument(overrides: Mapping[str, str]) -> str:
    """What a folder of images and clinical columns need; `overrides`: dotted field -> text, as on the command line."""
    return with_columns(folder_argument(overrides), overrides)


def get_study(argument: str = "") -> Study:
    """The study; `argument` is that of `ladder`."""
    suffix = f":{argument}" if argument else ""
    ladder, controls = load_study(f"ladder{suffix}"), load_study(f"controls{suffix}")
    of_ladder = [each for each in ladder.comparisons if _LEFT_OUT not in (each.arm, each.reference)]
    of_controls = [_renamed(each) for each in controls.comparisons if each.reference not in _SAME]
    return dataclasses.replace(
        ladder,
        name=ladder.name.replace("ladder", "complete"),
        expected=f"{ladder.expected} {controls.expected}",
        arms=(
            *(arm for arm in ladder.arms if arm.name != _LEFT_OUT),
            *(arm for arm in controls.arms if arm.name not in _SAME),
        ),
        comparisons=(*of_ladder, *of_controls),
    )


def _renamed(comparison: Comparison) -> Comparison:
    return dataclasses.replace(comparison, arm=_SAME.get(comparison.arm, comparison.arm), main=False)
