"""Settings of the property tests: how long an example takes says nothing about a policy."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
