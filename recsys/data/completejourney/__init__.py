"""The Complete Journey, a retail panel, provenance disputed, as events by weeks and as links: see `prepare`."""

from recsys.data.completejourney.past import FEATURES
from recsys.data.completejourney.prepare import prepare_completejourney
from recsys.data.completejourney.raw import find_completejourney

__all__ = ["FEATURES", "find_completejourney", "prepare_completejourney"]
