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

#: in the folder of the sockets: what the kernel's process itself wrote, which no cell shows
LOG = "kernel.log"


def kernel_manager_class(folder: str | Path, environment: Mapping[str, str]) -> type[AsyncKernelManager]:
    """Return a kernel manager with its sockets and log in ``folder`` and more in the kernel's environment."""
    sockets = {} if os.name == "nt" else {"transport": "ipc", "connection_file": str(Path(folder) / "k.json")}

    class Manager(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**{**kwargs, **sockets})

        async def start_kernel(self, **kwargs: Any) -> None:  # type: ignore[override]
            kwargs["env"] = {**os.environ, **(kwargs.get("env") or {}), **environment}
            with open(Path(folder) / LOG, "wb") as log:  # the kernel keeps its own copy of the handle
                await self._async_start_kernel(**kwargs, stderr=log)

    return Manager


def last_words(folder: str | Path, lines: int = 5) -> str:
    """Return the end of what the kernel's process wrote, for example why it died; empty if nothing."""
    log = Path(folder) / LOG
    if not log.is_file():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:])
