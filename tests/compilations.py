"""How many programs XLA compiles."""

from collections.abc import Iterator
import contextlib

import jax


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
  """A list that gets an entry for each program that is compiled inside."""
  compiled: list[str] = []

  def listen(event: str, *_: object, **__: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
