"""The error that a person can mend."""


class InputError(ValueError):
    """A value that the user gave cannot be used.

    The message names the field, the value that came, the values allowed and what to do. Commands print it alone,
    without a traceback, and exit with status 2; anything else that is raised is a bug of ours and keeps its traceback.
    """
