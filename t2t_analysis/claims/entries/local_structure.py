"""local-structure, abstract, Figure 2."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="local-structure",
    statement="A hard split into patches loses edges and lines; the soft split of T2T-ViT keeps them.",
    said="abstract, Figure 2",
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
            "edge maps of the own cell by a readout that knows absolute values (R², first third)",
            smallest="edge_r2",
            controlled="tokeniser_effect:edge_own_rectified",
            pair="edge_own_rectified",
            deciding=False,
        ),
        Effect(
            "share of the tokeniser's gradient outside the own cell",
            smallest="gradient_share",
            controlled="tokeniser_effect:gradient_outside",
            pair="gradient_outside",
        ),
    ),
    change=(
        "A readout that is not linear, larger images, or more training could order the models "
        "differently; the gradient share is given by the architecture and would not move."
    ),
    notebook="local_structure",
    order=10,
)
