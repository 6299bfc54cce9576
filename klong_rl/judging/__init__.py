"""Judging: rubric trees, a judge model as a scheduled resource, and the evidence that a verdict leaves."""
