"""local-structure, abstract, Figure 2."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="local-structure",
    statement="A hard split into patches loses edges and lines; the soft split of T2T-ViT keeps them.",
    said="abstract, Figure 2",
    premise="Early tokens of this model tell less of the edges of their cell than its pixels do.",
    effects=(
        Effect(
            "edge maps of the own cell from its token (R², first third of the blocks)",
            smallest="edge_r2",
            controlled="tokeniser_effect:edge_own",
            pair="edge_own",
        ),
        Effect(
            "edge maps of the neighbouring cell from a token (R², first third)",
            smallest="edge_r2",
            controlled="tokeniser_effect:edge_neighbour",
            pair="edge_neighbour",
        ),
        Effect(
            "edge maps of the own cell, absolute values given to the readout (R², first third)",
            smallest="edge_r2",
            controlled="tokeniser_effect:edge_own_rectified",
            pair="edge_own_rectified",
            deciding=False,
        ),
        Effect(
            "share of the tokeniser's gradient outside the own cell (given by the architecture)",
            smallest="gradient_share",
            controlled="tokeniser_effect:gradient_outside",
            pair="gradient_outside",
            deciding=False,
        ),
        Effect(
            "edge maps of the own cell (R², first third of the blocks) less the same from the pixels of that cell",
            smallest="edge_r2",
            premise="edges_over_pixels",
            direction=-1,
        ),
    ),
    change="A readout that is not linear, larger images, or more training could order the models differently.",
    notebook="local_structure",
    order=10,
)
