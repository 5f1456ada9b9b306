"""The error of this package that a user can cause."""


class LclmError(ValueError):
    """A folder, a prompt or a setting that cannot be used; the message names the value, the rule and the fix.

    It is a ``ValueError`` because servers answer these with status 400.
    """
