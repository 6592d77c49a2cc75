#!lua
--[[
Forgets counters of periods that no event reaches any more, because a counter does not expire by itself: an expiry would
take a sixth of it.

KEYS
  [1] the shard's generation
  then the counters

ARGV
  [1] ms since the epoch    periods that ended before that are forgotten

Returns how many were forgotten.

Invariants
  Only what Postgres holds exactly is forgotten: a counter is missing afterwards, which means unknown.
  The data set remembers in `forgotten` how late the last of them ended: none that ends by then starts at zero again,
  not even for a caller by whose clock it still runs.
]]
local ended_before, due, last_end = tonumber(ARGV[1]), {}, tonumber(redis.call('HGET', KEYS[1], 'forgotten')) or 0
for i = 2, #KEYS do
  local value = redis.call('GET', KEYS[i])
  local counter = value and unpack_counter(value)
  local ends = counter and tonumber(string.match(counter.stamp, '%d*$'))
  if ends and ends < ended_before and counter.sequence == counter.stored then
    due[#due + 1] = KEYS[i]
    last_end = math.max(last_end, ends)
  end
end
if #due > 0 then
  redis.call('HSET', KEYS[1], 'forgotten', string.format('%.0f', last_end))
  redis.call('DEL', unpack(due))
end
return #due
