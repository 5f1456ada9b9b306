"""The error of prepared data."""


class PreparedError(ValueError):
    """Prepared data that is missing, damaged or made by other settings; the message names the file and the fix."""
