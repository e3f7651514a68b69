"""Which GPUs of its host a process uses, from what each process there sees."""

import pytest

from jaxboost.errors import UserError
from jaxboost.processes import devices

UUIDS = ["GPU-aa", "GPU-ab", "GPU-c", "GPU-d"]


@pytest.mark.parametrize(
    ("variable", "left"),
    [
        (None, UUIDS),
        ("", []),
        ("2,0", ["GPU-c", "GPU-aa"]),
        ("GPU-ab,GPU-d", ["GPU-ab", "GPU-d"]),
        ("1,9,2", ["GPU-ab"]),
    ],
)
def test_the_variable_of_cuda(variable, left):
    assert devices.of_variable(UUIDS, variable) == left


def seen(*each, host="a"):
    return [{"host": host, "gpus": list(gpus)} for gpus in each]


def test_a_process_that_sees_only_its_own_uses_all_it_sees():
    """`srun --gpus-per-task=1`: each sees one GPU, which it calls number 0."""
    for number in range(3):
        assert devices.local_device_ids({}, seen("x", "y", "z"), number) is None
    assert devices.local_device_ids({}, seen("wx", "yz"), 1) is None


def test_processes_that_see_the_same_divide_it():
    """`srun --gres=gpu:4`: all see all."""
    all_see = seen("wxyz", "wxyz")
    assert [devices.local_device_ids({}, all_see, number) for number in (0, 1)] == [[0, 1], [2, 3]]
    # Those of another host are others.
    both = seen("wx", "wx") + seen("wx", "wx", host="b")
    assert [devices.local_device_ids({}, both, number) for number in range(4)] == [[0], [1], [0], [1]]


def test_alone_on_a_host_or_without_gpus_all_is_used():
    assert devices.local_device_ids({}, seen("wx") + seen("wx", host="b"), 1) is None
    assert devices.local_device_ids({}, seen("", ""), 1) is None


def test_what_cannot_be_divided():
    with pytest.raises(UserError, match="the 2 processes on a see 3, 3 GPUs, which cannot be divided evenly"):
        devices.local_device_ids({}, seen("xyz", "xyz"), 0)
    with pytest.raises(UserError, match="see 2, 1 GPUs"):
        devices.local_device_ids({}, seen("xy", "x"), 1)


def test_the_variable_of_jax_goes_first():
    assert devices.local_device_ids({"JAX_LOCAL_DEVICE_IDS": "1,3"}, seen("x", "y"), 1) == [1, 3]
    with pytest.raises(UserError, match="give numbers"):
        devices.local_device_ids({"JAX_LOCAL_DEVICE_IDS": "a"}, seen("x", "y"), 1)
