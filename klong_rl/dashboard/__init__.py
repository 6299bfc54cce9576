"""A page that shows a run: its curves, its fleet, its episodes, and each trajectory token by token (docs/dashboard.md).

    archive, metrics.jsonl, judging/  ──▶ index, trajectory, evidence ──┐
    Redis, fleet.json, while it is up ──▶ live ─────────────────────────┴─▶ server ──▶ static/, built of web/

Everything only reads. What an agent or a model wrote goes to the page as JSON and is shown as text.
"""
