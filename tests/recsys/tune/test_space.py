from dataclasses import replace

import pytest

from recsys.config import ConfigError
from recsys.tune.proposals import propose
from recsys.tune.space import SPACE, Range, apply, around, contains, own_settings, split_assignments
from tests.recsys.test_own_data import CONFIG

LR, EPOCHS = "rankers.training.dense_lr", "upstreams.*.training.epochs"


def test_every_setting_of_the_space_is_one_of_the_config() -> None:
    own = own_settings(CONFIG, SPACE)
    assert set(own) == set(SPACE)
    assert apply(CONFIG, own) == CONFIG


def test_a_setting_is_of_every_upstream() -> None:
    changed = apply(CONFIG, {EPOCHS: 3, LR: 0.5})
    assert [upstream.training.epochs for upstream in changed.upstreams] == [3]
    assert changed.rankers.training.dense_lr == 0.5


def test_the_configs_own_values_are_in_the_space() -> None:
    space = around(CONFIG, SPACE)
    assert space["rankers.network.embedding_dim"] == (4, 8, 16)
    assert space["upstreams.*.training.batch_size"] == (64, 256, 512, 1024)
    slow = apply(CONFIG, {LR: 1e-5})
    assert around(slow, SPACE)[LR] == Range(1e-5, 3e-3)


def test_set_narrows_or_fixes() -> None:
    given = (f"{EPOCHS}=[1,2]", f"{LR}={{low=0.01,high=0.1}}", "upstreams.open.model.tokens=2", "ranks=3")
    space, rest = split_assignments(given)
    assert rest == given[2:]
    assert set(SPACE) - set(space) == {"upstreams.*.model.tokens"}
    assert space[EPOCHS] == (1, 2)
    assert space[LR] == Range(0.01, 0.1)
    whole = around(CONFIG, space)
    assert whole[EPOCHS] == (1, 2)
    assert whole[LR] == Range(0.01, 0.1)
    assert not contains(whole[LR], own_settings(CONFIG, whole)[LR])  # the first trial lies outside of what was asked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (f"{EPOCHS}=[]", "is an empty list"),
        (f"{LR}={{low=0.1,high=0.01}}", "with 0 < low < high"),
        (f"{LR}={{low=0.1}}", "with 0 < low < high"),
        (f"{LR}={{low=0.1,high='a'}}", "with 0 < low < high"),
        ("epochs", "has no '='"),
    ],
)
def test_a_narrowing_that_is_none(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_assignments((given,))


def test_nothing_is_left_to_search() -> None:
    fixed, narrowed = (f"{path.replace('*', 'open')}=1" for path in SPACE), (f"{path}=[1]" for path in SPACE)
    for given in (fixed, narrowed):
        with pytest.raises(ConfigError, match="leaves nothing to search: leave it out for one of upstreams"):
            split_assignments(tuple(given))


def test_a_value_that_the_config_cannot_have() -> None:
    space, _ = split_assignments((f"{EPOCHS}=[1,0]",))
    with pytest.raises(ConfigError, match=r"upstreams.open.training.epochs is 0; use 1 or more"):
        around(CONFIG, space)


def test_what_upstreams_do_not_agree_on_stays_as_it_is_in_the_first_trial() -> None:
    (first,) = CONFIG.upstreams
    second = replace(first, name="buy", training=replace(first.training, epochs=3))
    study = replace(CONFIG, upstreams=(first, second))
    own = own_settings(study, SPACE)
    assert set(SPACE) - set(own) == {EPOCHS}
    assert apply(study, own) == study
    assert around(study, SPACE)[EPOCHS] == SPACE[EPOCHS]


def test_a_loss_that_is_off_is_no_end_of_a_logarithmic_range() -> None:
    weight = "upstreams.*.loss.contrastive_weight"
    off = apply(CONFIG, {weight: 0.0})
    space = around(off, SPACE)
    assert space[weight] == SPACE[weight]
    own = own_settings(off, space)
    assert own[weight] == 0
    assert contains(space[weight], propose(space, [(own, 1.0)], 1)[weight])
