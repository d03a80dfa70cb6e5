"""What a projector promised to give, checked where it is called."""

from __future__ import annotations

import torch

from harness.projector import Projector, VisualTokens

__all__ = ["check_tokens"]


def check_tokens(visual: object, projector: Projector, images: int, budget: object) -> None:
    """Refuse what is no batch of visual tokens, or another number of them than was asked for.

    Args:
        visual: what ``projector`` gave for ``images`` images.
        projector: in training mode its numbers may still diverge, which the loss tells; else they must be
            finite.
        images: ``b``.
        budget: the one asked for in this call; ``None`` means the one built for, if any.

    Raises:
        ValueError: one sentence, with what was expected and what came.
    """
    name, width = projector.name, projector.interface.language_width
    if not isinstance(visual, VisualTokens):
        raise ValueError(f"{name}: forward must return VisualTokens, not {type(visual).__name__}")
    shape = tuple(visual.embeddings.shape)
    if len(shape) != 2 or shape[1] != width:
        raise ValueError(
            f"{name}: embeddings must be [tokens, {width}], as wide as the language model; got {list(shape)}"
        )
    lengths = visual.lengths.tolist()
    if len(lengths) != images or min(lengths) < 1:
        raise ValueError(f"{name}: {images} images must get a token each at least; got lengths {lengths}")
    wanted = budget if budget is not None else projector.interface.budget
    # One that drops tokens inside the language model has its budget there.
    drops = type(projector).llm_hook is not Projector.llm_hook
    if wanted is not None and not drops and set(lengths) != {wanted}:
        raise ValueError(
            f"{name}: {wanted} visual tokens were asked for, {sorted(set(lengths))} came; give as many, or "
            "refuse the budget in skip"
        )
    if not projector.training and not bool(torch.isfinite(visual.embeddings).all()):
        raise ValueError(f"{name}: visual tokens are not finite; look at forward in eval mode and its dtype")
