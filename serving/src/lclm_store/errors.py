"""The error of this package that a user can cause."""


class StoreError(Exception):
    """A file that is no store, or a request that a store cannot meet; the message names the rule and the fix."""
