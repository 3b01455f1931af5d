"""The size of this machine's memory."""

import os
from pathlib import Path

_CGROUP_LIMITS = (
  Path("/sys/fs/cgroup/memory.max"),
  Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def host_memory() -> int:
  """The machine's memory in bytes, or the control group's limit if that is less.

  A container, for example, is a control group.
  """
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for path in _CGROUP_LIMITS:
    text = path.read_text().strip() if path.exists() else ""
    if text.isdecimal():  # The text may also be "max".
      limits.append(int(text))
  return min(limits)
