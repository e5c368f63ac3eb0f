"""What a user did wrong, in words."""

from __future__ import annotations


class UsageError(ValueError):
    """Wrong use: the message names what was wrong and the fix. The command line exits with 2."""
