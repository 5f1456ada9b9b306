"""The one family of errors that a user can cause and fix."""


class LclmError(Exception):
    """Something outside the program is wrong: a setting, a file, a machine. The message names the value and the fix.

    Commands print the message alone. Any other exception is a defect of ``lclm_jax`` or of a library and keeps its
    traceback.
    """
