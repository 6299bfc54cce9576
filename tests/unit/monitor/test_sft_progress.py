"""The display of a fine-tuning: a bar on a terminal, a line now and then elsewhere, evaluations always."""

import io

import msgspec
from rich.console import Console

from klong_rl.fine_tuning.training import SftMetrics
from klong_rl.monitor.sft_progress import LINE_EVERY_S, SftProgress, describe

STEP = SftMetrics(
    step=3, loss=1.25, grad_norm=1.0, learning_rate=1e-3, windows=4, tokens=20_000, targets=9, epochs=0.5, step_s=2.0
)


def shown(steps, is_terminal: bool, every_s: float = 1.0) -> str:
    times = iter(range(1000))
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=160)
    with SftProgress("demo", epochs=2, steps=0, console=console, clock=lambda: next(times) * every_s) as progress:
        for metrics in steps:
            progress.step(metrics)
        progress.say("said")
        progress.warn("warned")
    return console.file.getvalue()


def test_a_step_in_one_line():
    assert describe(STEP) == "step 3 | epoch 0.50 | loss 1.250 | 10.0k tokens/s"
    evaluated = msgspec.structs.replace(STEP, eval_loss=0.5, loss=None)
    assert describe(evaluated) == "step 3 | epoch 0.50 | loss diverged | held-out loss 0.500 | 10.0k tokens/s"


def test_in_a_log_file_lines_come_now_and_then_and_with_every_evaluation():
    steps = [msgspec.structs.replace(STEP, step=n, eval_loss=0.5 if n == 4 else None) for n in range(1, 6)]
    lines = shown(steps, is_terminal=False, every_s=LINE_EVERY_S / 100).splitlines()
    assert [line.split(" |")[0] for line in lines[:-2]] == ["step 1", "step 4"]
    assert lines[-2:] == ["said", "warning: warned"]


def test_a_terminal_has_a_bar_and_the_newest_numbers():
    screen = shown([STEP], is_terminal=True)
    assert "demo" in screen and "step 3 | epoch 0.50" in screen and "said" in screen
