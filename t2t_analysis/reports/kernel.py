"""Kernels for batch runs: sockets in a private folder instead of TCP ports, and an environment of their own.

Ports are chosen before they are bound, so kernels that start at the same time can collide; files cannot. The
environment belongs to one kernel, so several runs can share a process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

__all__ = ["kernel_manager_class"]


def kernel_manager_class(folder: str | Path, environment: Mapping[str, str]) -> type[AsyncKernelManager]:
    """Return a kernel manager with its sockets in ``folder`` and ``environment`` added to the kernel's."""
    sockets = {} if os.name == "nt" else {"transport": "ipc", "connection_file": str(Path(folder) / "k.json")}

    class Manager(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**{**kwargs, **sockets})

        async def start_kernel(self, **kwargs: Any) -> None:  # type: ignore[override]
            kwargs["env"] = {**os.environ, **(kwargs.get("env") or {}), **environment}
            await self._async_start_kernel(**kwargs)

    return Manager
