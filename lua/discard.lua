#!lua flags=allow-oom
--[[
Discards counters of a fenced organization in which nothing was ever counted.

KEYS
  the counters

ARGV
  none

Returns how many were discarded.

Invariants
  Nothing takes more memory than before.
  Only a counter that was never written since it was opened is discarded: it is in neither the dirty index nor Postgres.
]]
local discarded = 0
for _, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  if value and unpack_counter(value).sequence == 0 then
    discarded = discarded + redis.call('DEL', key)
  end
end
return discarded
