"""Rankers as files that a service loads: written, loaded, scored with, and moved to newer vectors."""

from recsys.bundle.bundle import Bundle, load_bundle
from recsys.bundle.live import LiveBundle
from recsys.bundle.manifest import BundleError

__all__ = ["Bundle", "BundleError", "LiveBundle", "load_bundle"]
