"""dead-channels, Figure 2."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="dead-channels",
    statement="ViT has channels that are zero or too large, T2T-ViT fewer.",
    said="Figure 2",
    premise="More than one in a hundred channels of this model are zero or too large.",
    effects=(
        Effect(
            "invalid channels of the residual stream (area under the curve)",
            smallest="channel_share",
            controlled="tokeniser_effect:invalid_area",
            pair="invalid_area",
            direction=-1,
        ),
        Effect(
            "invalid channels of the residual stream, both factors at once",
            smallest="channel_share",
            controlled="t2t_minus_vit:invalid_area",
            direction=-1,
            deciding=False,
        ),
        Effect(
            "invalid channels of the residual stream (area under the curve)",
            smallest="threshold",
            premise="invalid_area",
            bound=0.01,
        ),
    ),
    change="Invalid channels beyond one in a hundred in a model trained on more data; the authors' own weights.",
    notebook="channel_zeros",
    order=20,
)
