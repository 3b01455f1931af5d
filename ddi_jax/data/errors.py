"""The error raised when a data set cannot be read."""


class DataError(Exception):
  """A data set is not available on this machine; the message says what to do."""
