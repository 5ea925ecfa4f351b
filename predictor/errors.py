"""The root of errors that whoever labels, trains or asks a network can mend."""


class PredictorError(ValueError):
    """Says in one line what is wrong with data, settings or a network's folder, and the fix."""
