"""SVP on SLIC superpixels: what is left when semantic masks are replaced by local ones."""

from __future__ import annotations

from svp.projector import SVP

__all__ = ["SlicSVP"]


class SlicSVP(SVP):
    """The same projector and options as :class:`svp.projector.SVP`, always on SLIC's superpixels."""

    name = "svp_slic"
    kind = "control"
    reference = "SLIC (TPAMI 2012) in place of SAM's masks; projector: arXiv 2509.13676"
    licence = "none published (reimplemented from the paper's description)"
    departs = ""
    needs = ("superpixels",)
    superpixel_source = "slic"
