"""What can be observed inside a vision transformer, and how to watch it without changing it.

>>> import timm, torch
>>> model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval()
>>> with torch.no_grad(), capture(model, "blocks.*.attn.pattern") as seen:
...     logits = model(torch.randn(1, 3, 32, 48))
>>> {name: tuple(value.shape) for name, value in seen.items()}
{'blocks.0.attn.pattern': (1, 3, 7, 7), 'blocks.1.attn.pattern': (1, 3, 7, 7)}
>>> seen.layout("blocks.1.attn.pattern")
TokenLayout(prefix=1, grid=(2, 3))
"""

from .hooks import Captured, Handler, Observation, capture, observe
from .layout import TokenLayout
from .view import ModelView, names, view
