"""What a run shows of itself: metrics.jsonl and TensorBoard, the live display, the report."""
