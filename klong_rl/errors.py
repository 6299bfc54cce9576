"""Errors that a user can mend."""


class UserError(Exception):
    """One clear line: the thing, its value, the remedy. Entry points print it and exit with code 2."""


class LearnerFailure(Exception):
    """A learner rank died, raised, or didn't answer in time. The group it belonged to is gone; a new one goes on."""

    def __init__(self, rank: int, call: str, cause: object):
        super().__init__(f"learner rank {rank} failed in {call}: {cause}")
        self.rank = rank
        self.call = call
