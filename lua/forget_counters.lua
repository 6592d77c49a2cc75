#!lua
--[[
Forgets counters of periods that no event reaches any more, because a counter does not expire by itself: an expiry would
take a sixth of it.

KEYS
  the counters

ARGV
  [1] ms since the epoch    periods that ended before that are forgotten

Returns how many were forgotten.

Invariants
  Only what Postgres holds exactly is forgotten: a counter is missing afterwards, which means unknown.
]]
local forgotten = {}
for _, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  local counter = value and unpack_counter(value)
  local ends = counter and tonumber(string.match(counter.stamp, '%d*$'))
  if ends and ends < tonumber(ARGV[1]) and counter.sequence == counter.stored then
    forgotten[#forgotten + 1] = key
  end
end
if #forgotten > 0 then
  redis.call('DEL', unpack(forgotten))
end
return #forgotten
