"""Tokenisers: how an image becomes tokens.

The Tokens-to-Token module (Yuan et al., ICCV 2021, section 3.1) splits softly three times: overlapping windows are
flattened into tokens, the tokens attend to each other, and the result is laid out as an image again. A hard split
(Dosovitskiy et al., ICLR 2021) and three plain convolutions (the paper's Table 7) are the alternatives it is
compared with; three more have one part of the T2T module each. All of them map (B, C, H, W) to (B, N, D) and know
the grid that the N tokens lie on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, Mlp
from timm.models import register_notrace_module
from torch import Tensor, nn

from ..errors import CheckpointError, T2TError, UnknownNameError

TOKENISERS = ("performer", "transformer", "mlp", "convolution", "convolution_gelu", "hard", "hard_norm")


class Window(NamedTuple):
    """A sliding window; square, in pixels of what it slides over."""

    kernel: int
    stride: int
    padding: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Number of windows down and across.

        >>> Window(7, 4, 2).grid(224, 96)
        (56, 24)
        """
        return (
            (height + 2 * self.padding - self.kernel) // self.stride + 1,
            (width + 2 * self.padding - self.kernel) // self.stride + 1,
        )


#: The paper's three soft splits: 224 -> 56 -> 28 -> 14. (Its "S = [3, 1, 1]" is the overlap, not the stride.)
WINDOWS = (Window(7, 4, 2), Window(3, 2, 1), Window(3, 2, 1))


class _Slide(torch.autograd.Function):
    """``_windows`` with a fast backward pass: one strided addition per offset inside the window."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, window: Window) -> Tensor:
        return _windows(x, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Window], output: Tensor) -> None:
        ctx.shape, ctx.window = inputs[0].shape, inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (batch, height, width, channels), (kernel, stride, padding) = ctx.shape, ctx.window
        rows, columns = ctx.window.grid(height, width)
        grad = grad.reshape(batch, rows, columns, kernel, kernel, channels)
        total = grad.new_zeros(batch, height + 2 * padding, width + 2 * padding, channels)
        for i, j in itertools.product(range(kernel), repeat=2):
            down, across = slice(i, i + stride * rows, stride), slice(j, j + stride * columns, stride)
            total[:, down, across].narrow(1, 0, rows).narrow(2, 0, columns).add_(grad[:, :, :, i, j])
        return total[:, padding : padding + height, padding : padding + width], None


def _windows(x: Tensor, window: Window) -> Tensor:
    """Content of every window: (B, H, W, C) to (B, N, k*k*C), row, then column, then channel."""
    kernel, stride, padding = window
    x = F.pad(x, (0, 0, padding, padding, padding, padding))
    x = x.unfold(1, kernel, stride).unfold(2, kernel, stride)
    return x.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)


def normalised_split(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, window: Window) -> Tensor:
    """Overlapping windows, flattened, normalised, multiplied: (B, C, H, W) to (B, N, out).

    Channels lie last in memory, so that windows are copied in whole rows; scale and shift of the norm go into the
    linear layer, once for all windows. Windows are normalised before they are multiplied, so that flat ones (a white
    border, a saturated sky), whose deviation vanishes, are safe in any precision.
    """
    x = x.permute(0, 2, 3, 1).contiguous()
    eager = x.requires_grad and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    u = _Slide.apply(x, window) if eager else _windows(x, window)
    u = F.layer_norm(u, u.shape[-1:], eps=norm.eps)
    weight = (linear.weight * norm.weight).unflatten(1, (-1, window.kernel, window.kernel))
    constant = (linear.weight * norm.bias).sum(dim=1)
    constant = constant if linear.bias is None else constant + linear.bias
    return F.linear(u, weight.permute(0, 2, 3, 1).flatten(1), constant)


def _autocast_off(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    if x.is_meta:  # autocast does not know the meta device
        return contextlib.nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)


class Dropout(nn.Dropout):
    """Dropout that draws 16 bits a number: on a CPU PyTorch's own costs more than the layers around it."""

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of any shape to the same shape."""
        if not self.training or not self.p or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).div_(1 - self.p)


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h*w, C)."""
    return x.flatten(2).transpose(1, 2)


def _image(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h*w, C) to (B, C, h, w): a view in channels-last layout, which is the fast one for convolutions."""
    return x.transpose(1, 2).unflatten(2, grid)


class TokenAttention(nn.Module):
    """Single-head attention of the transformer tokeniser; the value is the skip, since the input is wider.

    The scale is (input width)^-0.5, 147^-0.5 and 576^-0.5 in the paper's models, not (head width)^-0.5.
    """

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.scale = dim_in**-0.5
        self.qkv = nn.Linear(dim_in, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, N, 3*d) in the order q, k, v, already projected, to (B, N, d)."""
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, N, d)
        z = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return v.squeeze(1) + self.proj(z.squeeze(1))


class _TokenMixer(nn.Module):
    """What the stages of a T2T module share: soft split, norm and projection."""

    #: order in which the projection holds query, key and value
    qkv_order: str

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.hook_qkv = nn.Identity()  # sees the projected tokens, which no Linear module puts out

    def _project(self, x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
        return self.hook_qkv(normalised_split(x, norm, linear, self.window))


class TokenMlp(_TokenMixer):
    """Soft split and MLP: a ``TokenPerformer`` without its attention, (B, C, H, W) to (B, N, d)."""

    def __init__(self, in_chans: int, dim: int, window: Window, drop: float = 0.1) -> None:
        super().__init__(window)
        dim_in = in_chans * window.kernel**2
        self.norm1 = nn.LayerNorm(dim_in)
        self.value = nn.Linear(dim_in, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, d)."""
        x = self._project(x, self.norm1, self.value)
        return x + self.mlp(self.norm2(x))


class TokenTransformer(_TokenMixer):
    """Soft split, full attention, MLP: (B, C, H, W) to (B, N, d)."""

    qkv_order = "qkv"

    def __init__(self, in_chans: int, dim: int, window: Window) -> None:
        super().__init__(window)
        dim_in = in_chans * window.kernel**2
        self.norm1 = nn.LayerNorm(dim_in)
        self.attn = TokenAttention(dim_in, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, d)."""
        x = self.attn(self._project(x, self.norm1, self.attn.qkv))
        return x + self.mlp(self.norm2(x))


class TokenPerformer(_TokenMixer):
    """Soft split, linear attention by positive random features (Choromanski et al., ICLR 2021), MLP.

    phi(x) = exp(w x - |x|^2 / 2) / sqrt(m); attention is phi(q) (sum phi(k) v) / (phi(q) . sum phi(k) + 1e-8), in at
    least float32 since 1e-8 is zero in half precision. It never forms an N x N matrix, so there is none to show.
    """

    qkv_order = "kqv"
    eps = 1e-8

    def __init__(self, in_chans: int, dim: int, window: Window, drop: float = 0.1) -> None:
        super().__init__(window)
        dim_in, features = in_chans * window.kernel**2, dim // 2
        self.w = nn.Parameter(math.sqrt(features) * nn.init.orthogonal_(torch.empty(features, dim)), False)
        self.kqv = nn.Linear(dim_in, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(drop)
        self.norm1 = nn.LayerNorm(dim_in)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), Dropout(drop))

    def phi(self, x: Tensor) -> Tensor:
        """Positive random features: (B, N, d) to (B, N, m)."""
        scale = x.square().sum(-1, keepdim=True) + math.log(self.w.shape[0])
        return (x @ self.w.to(x.dtype).T - scale / 2).exp()

    def attend(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """Linear attention, (B, N, d) each, to (B, N, d), without autocast and in at least float32."""
        dtype = torch.promote_types(v.dtype, torch.float32)
        with _autocast_off(v):
            phi_k, phi_q, v = self.phi(k.to(dtype)), self.phi(q.to(dtype)), v.to(dtype)
            weight = torch.einsum("bnm,bm->bn", phi_q, phi_k.sum(1)) + self.eps  # (B, N)
            return phi_q @ (phi_k.transpose(1, 2) @ v) / weight.unsqueeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, d)."""
        k, q, v = self._project(x, self.norm1, self.kqv).chunk(3, dim=-1)
        x = v + self.proj_drop(self.proj(self.attend(k, q, v).to(v.dtype)))
        return x + self.mlp(self.norm2(x))


_MIXERS: dict[str, Any] = {"performer": TokenPerformer, "transformer": TokenTransformer, "mlp": TokenMlp}


@register_notrace_module
class T2TModule(nn.Module):
    """Image to tokens by one of ``TOKENISERS``: (B, C, H, W) to (B, N, embed_dim), N tokens in row-major order.

    Shapes of weights do not tell strides. So soft splits by other windows than the paper's keep them in the state dict
    (``geometry``: kernel, stride and padding, a row a split), and weights of other windows are refused.

    Parameters
    ----------
    tokens_type : "performer" or "transformer" for the soft splits with attention, "mlp" for the same without it;
        "convolution" for three chained convolutions with the same windows, "convolution_gelu" for the same with layer
        norm over channels and GELU after the first two; "hard" for one non-overlapping split of the same total stride,
        "hard_norm" for the same with the T2T module's layer norm over each window's pixels before the projection.
    windows : the three soft splits; their strides multiply to the patch size.

    Raises
    ------
    UnknownNameError : no such ``tokens_type``.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        tokens_type: str = "performer",
        in_chans: int = 3,
        embed_dim: int = 768,
        token_dim: int = 64,
        windows: Sequence[Sequence[int]] = WINDOWS,
    ) -> None:
        super().__init__()
        if tokens_type not in TOKENISERS:
            raise UnknownNameError("tokens_type", tokens_type, TOKENISERS)
        self.tokens_type, self.in_chans, self.token_dim = tokens_type, in_chans, token_dim
        first, second, last = self.windows = tuple(Window(*window) for window in windows)
        self.patch_size = first.stride * second.stride * last.stride
        self.hard = tokens_type.startswith("hard")
        if self.hard:
            self.windows = (Window(self.patch_size, self.patch_size, 0),)
        elif self.windows != WINDOWS:
            self.register_buffer("geometry", torch.tensor(self.windows))
        self.project: Any
        if tokens_type in _MIXERS:
            mixer = _MIXERS[tokens_type]
            self.attention1 = mixer(in_chans, token_dim, first)
            self.attention2 = mixer(token_dim, token_dim, second)
            self.project = nn.Linear(token_dim * last.kernel**2, embed_dim)
        elif not self.hard:
            activated = tokens_type == "convolution_gelu"
            self.soft_split0 = _convolution(in_chans, token_dim, first, activated)
            self.soft_split1 = _convolution(token_dim, token_dim, second, activated)
            self.project = nn.Conv2d(token_dim, embed_dim, *last)
        elif tokens_type == "hard_norm":
            self.norm = nn.LayerNorm(in_chans * self.patch_size**2)
            self.project = nn.Linear(in_chans * self.patch_size**2, embed_dim)
        else:
            self.project = nn.Conv2d(in_chans, embed_dim, *self.windows[0])
        self.set_img_size(img_size)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        found = state_dict.get(f"{prefix}geometry")
        ours = any(key.startswith(prefix) for key in state_dict)
        if ours and "geometry" in self._buffers and (found is None or found.tolist() != _lists(self.windows)):
            theirs = "unknown to the file" if found is None else found.tolist()
            raise CheckpointError(
                f"weights of soft splits {theirs}; this model has {_lists(self.windows)} (kernel, stride, "
                "padding of each): train it again, or build it with their windows"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_img_size(self, img_size: tuple[int, int]) -> None:
        """Fix the image size that the position table is made for."""
        self.img_size, self.grid_size = tuple(img_size), self.grids(*img_size)[-1]
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of tokens after each split; the last is what the backbone sees.

        >>> T2TModule((224, 224)).grids(224, 96)
        [(56, 24), (28, 12), (14, 6)]
        """
        grids = []
        grid = (height, width)
        for window in self.windows:
            grid = window.grid(*grid)
            if min(grid) < 1:
                raise T2TError(f"an image of {height}x{width} px leaves no token; use sides of 32 px or more")
            grids.append(grid)
        return grids

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, embed_dim)."""
        if x.shape[1] != self.in_chans:
            raise T2TError(f"expected images with {self.in_chans} channels, got shape {tuple(x.shape)}")
        if self.hard:
            return self._hard_split(x)
        if self.tokens_type not in _MIXERS:
            return _rows(self.project(self.soft_split1(self.soft_split0(x))))
        first, second, _ = self.grids(*x.shape[-2:])
        x = _image(self.attention1(x), first)
        x = _image(self.attention2(x), second)
        return self._last_split(x)

    def _hard_split(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise T2TError(f"image sides must be multiples of {self.patch_size}, got {height}x{width}")
        if self.tokens_type == "hard":
            return _rows(self.project(x))
        return normalised_split(x, self.norm, self.project, self.windows[0])

    def _last_split(self, x: Tensor) -> Tensor:
        """Soft split and linear projection, without a norm between them, are one convolution."""
        window = self.windows[-1]
        weight = self.project.weight.view(-1, x.shape[1], window.kernel, window.kernel)
        return _rows(F.conv2d(x, weight, self.project.bias, window.stride, window.padding))


def _lists(windows: Sequence[Window]) -> list[list[int]]:
    return [list(window) for window in windows]


def _convolution(in_chans: int, dim: int, window: Window, activated: bool) -> nn.Module:
    """One stage of a convolutional tokeniser; linear, as in the authors' code, unless ``activated``."""
    convolution = nn.Conv2d(in_chans, dim, *window)
    return nn.Sequential(convolution, LayerNorm2d(dim), nn.GELU()) if activated else convolution
