"""What tests do in a sandbox of either kind."""

from klong_rl.types import Limits

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=256, pids=64)


async def run(sandbox, command, timeout_s=10.0, **options):
    return await sandbox.exec(command, timeout_s=timeout_s, **options)


async def alive(sandbox, marker):
    """How many processes have `marker` as their whole command line."""
    return int((await run(sandbox, f"ps -eo args= | grep -cx '{marker}'")).output)
