"""What holds for all tests: none depends on how fast the machine is, nor on what else runs there."""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault(
    "TORCHINDUCTOR_COMPILE_THREADS", "1"
)  # its pool of compiling processes takes longer than it saves

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
