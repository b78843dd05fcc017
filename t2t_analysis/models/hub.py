"""Timm's pretrained weights: from the caches of the model hub and of torch, or downloaded into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import DownloadError
from .download import fetch, within


def timm_file(config: Any, timeout: float) -> tuple[Path, str]:
    """The weights file of one of timm's configurations, cached or downloaded, and where it is from."""
    if config.file:
        return Path(config.file), str(config.file)
    if config.hf_hub_id:
        given = config.hf_hub_filename
        names = [given] if given else ["model.safetensors", "pytorch_model.bin"]
        path = hub_file(config.hf_hub_id, names, timeout)
        return path, f"{config.hf_hub_id}/{path.name}"
    name = config.url.rsplit("/", 1)[-1]
    return fetch(config.url, Path(torch.hub.get_dir()) / "checkpoints" / name, timeout=timeout), config.url


def hub_file(repo: str, names: list[str], timeout: float) -> Path:
    """The first of ``names`` that the hub repository has, from its cache or downloaded into it.

    The client retries for half a minute when its server does not answer, so it is called only for a file
    that a single request, bounded by ``timeout`` seconds, has found there.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants

    repo, _, revision = repo.partition("@")
    place: dict[str, Any] = {"repo_id": repo, "revision": revision or None}
    for name in names:
        if isinstance(path := hub.try_to_load_from_cache(filename=name, **place), str):
            return Path(path)
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(f"{repo} is not in the hub's cache, and HF_HUB_OFFLINE is set")
    for name in names:
        if _exists(hub.hf_hub_url(filename=name, **place), timeout):
            try:
                return Path(hub.hf_hub_download(filename=name, etag_timeout=timeout, **place))
            except Exception as error:  # the client's own errors, its HTTP library's, and the disk's
                raise DownloadError(f"cannot download {repo}/{name}: {error}") from error
    raise DownloadError(f"{repo} has none of {', '.join(names)}")


def _exists(url: str, timeout: float) -> bool:
    """Whether the hub has this file, asked once."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import EntryNotFoundError

    try:
        within(timeout, lambda: get_hf_file_metadata(url, timeout=timeout))
    except EntryNotFoundError:
        return False
    except Exception as error:  # what the client raises here depends on its version
        raise DownloadError(f"cannot reach {url}: {error}") from error
    return True
