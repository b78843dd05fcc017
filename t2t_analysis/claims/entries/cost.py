"""cost, Tables 1 and 2."""

from ..base import Claim, Effect

__all__ = ["CLAIM"]

CLAIM = Claim(
    name="cost",
    statement="T2T-ViT has half the parameters and multiply-accumulates of ViT.",
    said="Tables 1 and 2",
    effects=(
        Effect(
            "parameters, ratio less one half",
            smallest="cost",
            controlled="cost:parameters_over_half",
            pair="cost:parameters_over_half",
            direction=-1,
        ),
        Effect(
            "multiply-accumulates (all products), ratio less one half",
            smallest="cost",
            controlled="cost:macs_all_over_half",
            pair="cost:macs_all_over_half",
            direction=-1,
        ),
        Effect(
            "largest deviation of counted from printed parameters (T2T-ViT lines of Tables 1 and 2), ratio less one",
            smallest="cost",
            controlled="cost:printed_parameters",
            pair="cost:printed_parameters",
            direction=0,
            deciding=False,
        ),
        Effect(
            "largest deviation of counted from printed multiply-accumulates (the same lines), ratio less one",
            smallest="cost",
            controlled="cost:printed_macs",
            pair="cost:printed_macs",
            direction=0,
            deciding=False,
        ),
    ),
    change=(
        "Nothing but another convention: these are counts. Latency and memory are measured in the "
        "notebook, not judged here."
    ),
    notebook="cost",
    order=100,
)
