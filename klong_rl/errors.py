"""Errors that a user can mend."""


class UserError(Exception):
    """One clear line: the thing, its value, the remedy. Entry points print it and exit with code 2."""
