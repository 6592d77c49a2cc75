#!lua
--[[
Applies an adjustment that is committed in Postgres to its counter, once.

KEYS
  [1] the shard's generation
  [2] the hash that has the organization
  [3] the shard's dirty index
  [4] the counter

ARGV
  [1] now                   ms since the epoch
  [2] generation            that the caller believes in
  [3] policy version        that the caller resolved before it saw that the adjustment is pending
  [4] id                    of the adjustment; grows from one adjustment of a counter to the next
  [5] amount                units to add, or below 0 to give back
  [6] hour                  ms, start of the hour that it is counted in
  [7] organization          its id
  [8] percents              that are told of when they are crossed, separated by spaces

Returns one of
  'adjusted'                it is done, now or before
  'generation'              the data set has another generation, or none
  'policy'                  Redis knows no policy of the organization, or a newer one
  'restore'                 the counter is missing or of another generation: it must be opened first

Invariants
  An adjustment is applied only where the counter's last one is older, and leaves its id in the same step.
  A count never falls below 0; what was applied is the difference. Where it would pass 2^53 - 1, nothing is applied.
  No adjustment of before the organization's deletion reaches a counter of after it: the policy is newer then.
  `sequence` grows with every write; a counter of which it differs from what is `stored` is in the dirty index.
  What is given back leaves in the counter what a flush needs to tell what was crossed, and so does what is crossed.
]]
local COUNT_MAX = 9007199254740991
local now, generation, version, id = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local amount, hour = tonumber(ARGV[5]), tonumber(ARGV[6])

if redis.call('HGET', KEYS[1], 'number') ~= generation then
  return 'generation'
end
local organization = read_organization(KEYS[2], ARGV[7])
if not organization or organization.version > version then
  return 'policy'
end
local held = redis.call('GET', KEYS[4])
local counter = held and unpack_counter(held)
if not counter or string.match(counter.stamp, '^%d+') ~= generation then
  return 'restore'
end
if counter.adjusted ~= '' and tonumber(string.match(counter.adjusted, '^%d+')) >= id then
  return 'adjusted'
end

local used = counter.used
local adjusted = math.max(used + amount, 0)
if adjusted > COUNT_MAX then
  adjusted = used
end
local applied = adjusted - used
local clean = counter.sequence == counter.stored
local h = place_of_hour(counter.hours, hour)
counter.hours[h + 1] = counter.hours[h + 1] + applied
counter.used, counter.sequence = adjusted, counter.sequence + 1
counter.adjusted = string.format('%.0f:%.0f:%.0f:%.0f', id, applied, adjusted, hour)
if clean or not counter.oldest or hour < counter.oldest then
  counter.oldest = hour
end
if applied < 0 then
  counter.peak = math.max(counter.peak, used)
elseif applied > 0 then
  add_crossings(counter, crossings(counter.stamp, ARGV[8], used, adjusted, applied))
end
redis.call('SET', KEYS[4], pack_counter(counter))
if clean then
  redis.call('ZADD', KEYS[3], now, KEYS[4])
end
return 'adjusted'
