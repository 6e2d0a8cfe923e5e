"""Property tests know no clock: on a busy machine any example may take longer than Hypothesis would wait for it."""

from hypothesis import HealthCheck, settings

settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")
