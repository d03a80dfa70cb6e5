"""What a referring expression leans on, told by its words: a place in the image, a relation, or looks.

RefCOCO allows place words, RefCOCO+ forbade them to its annotators, RefCOCOg is full of relations:
scores are broken down by this.
"""

from __future__ import annotations

import re

__all__ = ["PHENOMENA", "tag_phenomenon"]

PHENOMENA = ("location", "relation", "attribute")

_PICTURE = r"(?:pic|picture|photo|image|screen|frame|view|shot|row|group|line|all|it|us|you|me)"
# "left of the plate" relates two objects, "left of the picture" is a place.
_RELATION = re.compile(
    rf"""\b(?:
        (?:to \s the \s | on \s the \s)? (?:left|right) (?:\s (?:hand \s)? side)? \s of \b
            (?! \s (?:(?:the|this|entire|whole) \s)* {_PICTURE} \b)
      | (?:in \s)? front \s of \b (?! \s (?:(?:the|this) \s)* {_PICTURE} \b)
      | (?:on \s top | in \s the \s middle | on \s the \s side) \s of \b
            (?! \s (?:(?:the|this) \s)* {_PICTURE} \b)
      | (?:next|close|closest|closer|nearest) \s to \b (?! \s (?:(?:the|this) \s)* {_PICTURE} \b)
      | (?:behind|beside|besides|above|below|under|underneath|beneath|between|near|by|over|against
          |inside|around|among|amongst|touching|facing|across) \s (?= \w)
      | (?:holding|riding|carrying|pulling|pushing|leading|hugging|petting|eating|throwing|catching) \b
      | (?:sitting|standing|lying|laying|resting|leaning|hanging|parked) \s (?:on|in|at|with|against) \b
          (?! \s (?:the \s)? (?:far|left|right|top|bottom|end|middle|center|side) \b)
    )""",
    re.VERBOSE,
)
_LOCATION = re.compile(
    r"""\b(?:
        left|right|lft|rt|leftmost|rightmost|leftest|rightest|top|bottom|upper|lower|uppermost|lowermost
      | topmost|bottommost|highest|lowest|middle|mid|center|centre|central|corner|edge|far|farthest|furthest
      | front|back|rear|foreground|background|closest|nearest|closer|nearer|behind|row|end
      | first|second|third|fourth|1st|2nd|3rd|4th
    )\b""",
    re.VERBOSE,
)


def tag_phenomenon(sentence: str) -> str:
    """The first that applies of ``location``, ``relation``, ``attribute``.

    ``location`` means a place word that is not part of a relational phrase: ``left cup`` and ``left of
    the picture`` are locations, ``left of the plate`` is a relation.

    Args:
        sentence: the expression, any case.
    """
    words = " ".join(re.findall(r"[a-z0-9']+", sentence.lower()))
    rest = _RELATION.sub(" ", words)
    if _LOCATION.search(rest):
        return "location"
    return "relation" if rest != words else "attribute"
