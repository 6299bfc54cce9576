"""Simple policy optimization (arXiv 2401.16025): a quadratic penalty in the place of the clip, in one formula.

python -m klong_rl.launch name=spo learner.objective=examples.spo.spo +learner.objective_options.epsilon=0.3
"""

import torch

from klong_rl.objectives import TargetTokens, TokenLoss


def spo(tokens: TargetTokens, log_ratio_N: torch.Tensor, *, epsilon: float = 0.2) -> TokenLoss:
    ratio_N, advantages_N = log_ratio_N.exp(), tokens.advantages_W[tokens.window_N]
    penalty_N = advantages_N.abs() / (2 * epsilon) * (ratio_N - 1) ** 2
    return TokenLoss(penalty_N - ratio_N * advantages_N, values={"spo_penalty": penalty_N})
