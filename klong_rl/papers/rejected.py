"""How a paper ends that becomes no task by its own doing."""


class Rejected(Exception):
    """A paper that becomes no task, for good: until it, or a setting, changes. One line, with the rule."""
