"""The Research-Factory: from a folder of papers to PaperBench-format tasks, a stage a file (docs/factory.md)."""
