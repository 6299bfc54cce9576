"""klong_rl: train LLM agents on tasks that last hours. Start at `klong_rl.launch`, or read docs/architecture.md."""

__version__ = "0.1.0"
