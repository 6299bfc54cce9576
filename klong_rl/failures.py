"""The three ways in which an episode can fail, never mixed.

InfrastructureFailure   ours: tried again elsewhere, never trained, never a reward
TaskFailure             the task is broken: its episodes are dropped, and said so
AgentFailure            the agent's own doing: a real result, judged and trained
"""


class EpisodeFailure(Exception):
    """Base of the closed set below; never raised itself."""


class InfrastructureFailure(EpisodeFailure):
    """A daemon, a host, an engine or a network failed or did not answer in time. Says what was waited for."""


class TaskFailure(EpisodeFailure):
    """The task itself can't be set up or scored: a file that doesn't fit, an image that lacks a tool."""


class AgentFailure(EpisodeFailure):
    """The agent broke its own sandbox beyond repair, or left something that can't be read: a real outcome."""
