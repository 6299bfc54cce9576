"""Evaluation on suites of tasks: what `python -m klong_rl.evaluate` is made of (docs/evaluate.md)."""
