"""The error of this package that a user can cause."""


class AgentError(ValueError):
    """A document, a file, an endpoint or a setting that cannot be used; the message names the value and the fix."""
