import numpy as np

from recsys.data.hashing import scramble, splitmix64

PUBLISHED = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
"""The generator's first draws when it begins at 0."""


def test_draws_are_the_published_ones() -> None:
    assert splitmix64(np.zeros(1, np.uint64)).tolist() == PUBLISHED[:1]
    assert scramble(np.array([1, 2, 3]), 0).view(np.uint64).tolist() == PUBLISHED
    assert scramble(np.array([-1, 0, 1]), 2).view(np.uint64).tolist() == PUBLISHED


def test_arguments_are_left_alone() -> None:
    numbers = np.arange(5)
    splitmix64(numbers.view(np.uint64))
    scramble(numbers, 1)
    assert numbers.tolist() == [0, 1, 2, 3, 4]
