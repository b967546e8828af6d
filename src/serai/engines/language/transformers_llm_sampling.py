"""Drawing the next token of each row of a batch as its own request says."""

from collections import Counter
from collections.abc import Sequence

import torch

from serai.engines.tasks import Sampling
from serai.engines.text import DrawnToken


def draw_token(
    logits: torch.Tensor, sampling: Sampling, *, prompt: Sequence[int], drawn: Sequence[int], generator: torch.Generator
) -> DrawnToken:
    """Return a token for `logits` (vocabulary,), with the likelihoods that the request asks for.

    Likelihoods are the model's own, before bias, penalties and temperature. Repetition counts the prompt
    (Keskar et al. 2019, as transformers does it); presence and frequency count the answer (as OpenAI does).
    """
    raw = logits.float()
    scores = penalized(raw.clone(), sampling, prompt=prompt, drawn=drawn)
    token = int(scores.argmax()) if sampling.temperature == 0 else _drawn(scores, sampling, generator)
    if sampling.logprobs is None:
        return DrawnToken(id=token)
    logprobs = raw.log_softmax(-1)
    best = logprobs.topk(min(sampling.logprobs, len(logprobs)))
    top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return DrawnToken(id=token, logprob=float(logprobs[token]), top=top)


def penalized(scores: torch.Tensor, sampling: Sampling, *, prompt: Sequence[int], drawn: Sequence[int]) -> torch.Tensor:
    """Return the scores with bias and penalties; `scores` is changed."""
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *drawn}), device=scores.device)
        chosen = scores[seen]
        scores[seen] = torch.where(
            chosen > 0, chosen / sampling.repetition_penalty, chosen * sampling.repetition_penalty
        )
    if drawn and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(drawn)
        tokens = torch.tensor(list(counts), device=scores.device)
        times = torch.tensor(list(counts.values()), device=scores.device, dtype=scores.dtype)
        scores[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return scores


def _drawn(scores: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw among the tokens that top_k, top_p and min_p leave; the likeliest is always one of them."""
    probabilities, tokens = (scores / sampling.temperature).softmax(-1).sort(descending=True)
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if sampling.top_k:
        keep[sampling.top_k :] = False
    if sampling.top_p < 1.0:
        before = probabilities.cumsum(-1) - probabilities
        keep &= before < sampling.top_p
    if sampling.min_p > 0.0:
        keep &= probabilities >= sampling.min_p * probabilities[0]
    keep[0] = True
    weights = torch.where(keep, probabilities, 0.0).cpu()
    return int(tokens[torch.multinomial(weights, 1, generator=generator)])
