"""A read of many hashes in one Redis command: a script on the server, because a client spends several microseconds on each command
of a pipeline and on each of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: KEYS: of all groups. ARGV: for each group the number of keys, the number of fields, and the fields. Returns for each key a
#: value, or a list of values if there are several fields.
SCRIPT = """
local out, done, position = {}, 0, 1
while position <= #ARGV do
  local keys, fields, first = tonumber(ARGV[position]), tonumber(ARGV[position + 1]), position + 2
  position = first + fields
  for key = done + 1, done + keys do
    if fields == 1 then
      out[key] = redis.call('HGET', KEYS[key], ARGV[first])
    else
      out[key] = redis.call('HMGET', KEYS[key], unpack(ARGV, first, position - 1))
    end
  end
  done = done + keys
end
return out
"""


@dataclass(frozen=True)
class Hashes:
    """Hashes of which the same fields are read."""

    keys: Sequence[bytes]
    fields: Sequence[bytes]


def call(sha: str, groups: Sequence[Hashes]) -> tuple[bytes | str | int, ...]:
    """The command that runs the script with this hash."""
    keys: list[bytes] = []
    arguments: list[bytes | int] = []
    for group in groups:
        keys += group.keys
        arguments += (len(group.keys), len(group.fields), *group.fields)
    return ("EVALSHA", sha, len(keys), *keys, *arguments)
