"""Errors that a user can mend."""


class UserError(Exception):
    """One clear line: the thing, its value, the remedy. Entry points print it and exit with code 2."""


class AdvantageError(UserError):
    """A user's own advantage rule failed on a group."""


class Stuck(Exception):
    """What was waited for didn't come by its deadline."""


class LeaseLost(Exception):
    """Redis came back without a lease whose windows are trained already: the weights must go back to before it."""


class LearnerFailure(Exception):
    """A learner rank died, raised, or didn't answer in time. The group it belonged to is gone; a new one goes on."""

    def __init__(self, rank: int, call: str, cause: Exception | str):
        super().__init__(f"learner rank {rank} failed in {call}: {in_short(cause)}")
        self.rank = rank
        self.call = call


def in_short(error: Exception | str) -> str:
    """One line of what went wrong. Ray's own errors hold pages, and wrap what a remote process raised."""
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, RayActorError):
        return "its process ended"
    text = str(error.cause if isinstance(error, RayTaskError) else error).split("\n", 1)[0]
    return f"{type(error.cause).__name__}: {text}" if isinstance(error, RayTaskError) else text


class AlreadyStarted(Exception):
    """A process of an actor that was told to start again: it is the one of the life before, and about to end."""
