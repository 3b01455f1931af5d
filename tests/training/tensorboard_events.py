"""Reads TensorBoard event files without TensorBoard."""

from collections import defaultdict
import struct

from tensorboardX.proto import event_pb2


def scalars(folder):
  """{tag: [(step, value), ...]} of all event files in a folder."""
  found = defaultdict(list)
  for path in sorted(folder.glob("events.*")):
    content, position = path.read_bytes(), 0
    while position < len(content):
      (length,) = struct.unpack_from("<Q", content, position)
      event = event_pb2.Event()
      event.ParseFromString(content[position + 12 : position + 12 + length])
      position += 12 + length + 4
      for value in event.summary.value:
        found[value.tag].append((event.step, value.simple_value))
  return found
