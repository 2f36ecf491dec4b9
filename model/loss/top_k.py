"""SL@K: weights the loss of a positive by whether its score reaches the user's K best scores.

Yang et al., KDD 2025, arXiv 2508.05673.

w_i = sigmoid((s_i - beta_i) / tau_beta), where s_i is the cosine of the positive and beta_i the K-th best cosine of the row's
user. A positive far below the K best counts less: moving it changes no metric at K. The paper shows that softmax losses with
these weights bound NDCG@K.

The paper estimates beta from the user's positives and uniformly drawn negatives, every few epochs. Here it is estimated in
each step from the shared candidates. Candidate j stands for count_j / expected_j items of the catalogue (model/loss/logq.py),
so the estimated number of items with a score of at least x is the sum of these weights over the candidates with s_j >= x. Its
expectation is the number in the catalogue, for any mixture of samplers. beta is the highest x at which it reaches K. If one
candidate stands for more than K items, beta is about the best score of all candidates.

Shapes: B rows, U shared candidates, C best candidates of a row.
"""

import torch
from torch import Tensor

from model.loss.losses import MASKED

# Candidates of a row that are sorted first, as a multiple of K. Only rows whose weights do not add up to K are sorted whole.
FIRST = 4


@torch.no_grad()
def top_k_weights(
    positive_B: Tensor, shared_BU: Tensor, weights_U: Tensor, k: int, temperature: float, weight_temperature: float
) -> Tensor:
    """[B] sigmoid((s_i - beta_i) / tau_beta), without gradient.

    positive_B, shared_BU: uncorrected logits (cosine / temperature) of the positives and of the shared candidates, with
    masks. weights_U: count / expected count. weight_temperature: tau_beta, in cosines.

    The loss multiplies by the weight as by a constant. The weight grows with the positive's score. With its gradient, a
    step could reduce weight x loss by lowering the score of a positive until its weight is 0, so hard positives would be
    pushed away.
    """
    distance_B = positive_B - kth_best(shared_BU, weights_U, k)
    return torch.sigmoid(distance_B * (temperature / weight_temperature))


def kth_best(scores_BU: Tensor, weights_U: Tensor, k: int) -> Tensor:
    """[B]: the highest score x of a row at which the weights of candidates with a score of at least x add up to `k`.

    MASKED scores do not count. -inf if all weights of a row add up to less: then every item is among the K best.
    """
    columns = scores_BU.shape[1]
    threshold_B, reached_B = _threshold(*scores_BU.topk(min(columns, FIRST * k), dim=1), weights_U, k)
    if columns > FIRST * k and not bool(reached_B.all()):
        rest = ~reached_B
        threshold_B[rest], _ = _threshold(*scores_BU[rest].sort(dim=1, descending=True), weights_U, k)
    return threshold_B


def _threshold(best_BC: Tensor, places_BC: Tensor, weights_U: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`kth_best` from the best candidates of a row in descending order, and whether their weights add up to `k`."""
    weights_BC = weights_U[places_BC].masked_fill(best_BC <= MASKED / 2, 0.0)
    before_B = (weights_BC.cumsum(1) < k).sum(1)  # Candidates above the threshold.
    reached_B = before_B < best_BC.shape[1]
    threshold_B = best_BC.gather(1, before_B.clamp(max=best_BC.shape[1] - 1)[:, None]).squeeze(1)
    return torch.where(reached_B, threshold_B, -torch.inf), reached_B
