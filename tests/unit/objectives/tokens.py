"""Target tokens for the tests of objectives."""

import torch

from klong_rl.objectives import TargetTokens

LENGTHS, ADVANTAGES = (5, 7, 3, 0, 1), (1.5, -0.7, 0.0, 2.0, -1.1)
N_TOKENS = sum(LENGTHS)


def target_tokens(lengths=LENGTHS, advantages=ADVANTAGES, **given) -> TargetTokens:
    """Random ones in float64 unless they are given: windows of those lengths, ratios on both sides of any clip."""
    n = sum(lengths)
    made = torch.Generator().manual_seed(3)
    logprobs, sampler, reference, proximal, entropies = -torch.rand(5, n, generator=made, dtype=torch.float64) * 2
    values = {
        "logprobs_N": logprobs,
        "sampler_logprobs_N": sampler,
        "reference_logprobs_N": reference,
        "proximal_logprobs_N": proximal,
        "entropies_N": -entropies,
        "staleness_N": torch.randint(0, 4, (n,), generator=made),
    } | given
    for name in ("logprobs_N", "entropies_N"):
        values[name] = values[name].clone().requires_grad_()
    return TargetTokens(
        window_N=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64)),
        advantages_W=torch.tensor(advantages, dtype=torch.float64),
        **values,
    )


def columns(tokens: TargetTokens) -> dict[str, list[list[float]]]:
    """Log-probs and entropies as lists [window][token], for formulas written in plain Python."""
    names = ("logprobs_N", "sampler_logprobs_N", "reference_logprobs_N", "proximal_logprobs_N", "entropies_N")
    windows = tokens.window_N.tolist()
    return {
        name.removesuffix("_N"): [
            [x for x, w in zip(getattr(tokens, name).tolist(), windows, strict=True) if w == window]
            for window in range(len(tokens.advantages_W))
        ]
        for name in names
    }
