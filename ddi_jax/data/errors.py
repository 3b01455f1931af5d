"""What the data's readers raise."""


class DataError(Exception):
  """A data set cannot be had here; the message says what to do."""
