"""launch.py, of which each checkpoint takes a minute between files and checksums."""

from pathlib import Path
import runpy
import time

from ddi_jax.training.storage import checksums


def main() -> None:
  """Run launch.py with a slow `write_checksums`."""
  write = checksums.write_checksums

  def write_slowly(folder):
    print(f"saving {folder.name}", flush=True)
    time.sleep(60 if folder.name != "0" else 0)
    write(folder)

  checksums.write_checksums = write_slowly
  runpy.run_path(str(Path(__file__).parents[3] / "launch.py"), run_name="__main__")


if __name__ == "__main__":  # pytest imports every file, for its doctests.
  main()
