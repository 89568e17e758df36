from recsys.tune.proposals import propose
from recsys.tune.space import SPACE, Range, contains

TINY = {"lr": Range(0.0123456, 0.1), "layers": (1, 2, 3)}


def test_what_is_proposed_depends_on_the_trials_before_alone() -> None:
    first = [propose(SPACE, [], number) for number in range(3)]
    assert first == [propose(SPACE, [], number) for number in range(3)]
    assert first[0] != first[1]
    for path, value in first[2].items():
        assert contains(SPACE[path], value)


def test_proposals_crowd_where_trials_were_good() -> None:
    """Against what is drawn at random, for want of trials that say more."""
    trials = [
        ({"lr": lr, "layers": layers}, layers + lr) for layers in (1, 2, 3) for lr in (0.0123456, 0.03, 0.05, 0.1)
    ]

    def good(known: list[tuple[dict[str, float], float]]) -> int:
        found = [propose(TINY, known, number) for number in range(40)]
        assert all(contains(TINY["lr"], settings["lr"]) for settings in found)
        return sum(settings["layers"] == 1 and settings["lr"] < 0.05 for settings in found)

    assert good(trials) > good([]) + 5
