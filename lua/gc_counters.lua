#!lua
--[[
Garbage-collects counters whose period ended so long ago that no event can reach it. Counters have no expiry of their
own, which would take a sixth of their memory.

KEYS
  [1] the shard's generation
  then the counters

ARGV
  [1] Unix time, ms         counters of periods that ended before are deleted

Returns how many were deleted.

Invariants
  Only what Postgres has exactly is deleted: the counter is missing afterwards, which means unknown.
  The data set keeps the latest end of a deleted counter in `forgotten`: no counter that ends as early is started at
  zero again, not even for a caller whose clock is behind.
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
