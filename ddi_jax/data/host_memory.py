"""How much memory this machine has."""

import os
from pathlib import Path

_CGROUP_LIMITS = (
  Path("/sys/fs/cgroup/memory.max"),
  Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def host_memory() -> int:
  """Bytes in all: the machine's, or the control group's (a container's) if fewer."""
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for path in _CGROUP_LIMITS:
    text = path.read_text().strip() if path.exists() else ""
    if text.isdecimal():  # Or "max".
      limits.append(int(text))
  return min(limits)
