#!lua
--[[
Applies an adjustment that is committed in Postgres to its counter, once.

KEYS
  [1] the shard's generation
  [2] the hash that has the organization
  [3] the shard's dirty index
  [4] the counter

ARGV
  [1] now                   Unix time, ms
  [2] generation            that the caller expects
  [3] policy version        that the caller resolved before it read that the adjustment is pending
  [4] id                    of the adjustment; grows from one adjustment of a counter to the next
  [5] amount                units to add, or negative to give back
  [6] slot                  start of the slot that it is counted in, ms
  [7] organization          its id
  [8] percents              thresholds in percent of the limit, separated by spaces

Returns one of
  'adjusted'                applied, now or before
  'generation'              the data set has another generation, or none
  'policy'                  Redis has no policy of the organization, or a newer one
  'restore'                 the counter is missing or of another generation, and must be recovered first

Invariants
  An adjustment is applied only if the counter's last one is older, and leaves its id in the same step.
  A count never falls below 0; the difference is what was applied. If it would exceed 2^53 - 1, nothing is applied.
  No adjustment made before the organization's deletion reaches a counter made after it: the policy is newer then.
  `sequence` grows with every write; a counter whose `sequence` differs from `stored` is in the dirty index.
  Refunded units and crossed thresholds leave in the counter what a flush needs to find crossed thresholds.
]]
local now, generation, version, id = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local amount, slot_start = tonumber(ARGV[5]), tonumber(ARGV[6])

if redis.call('HGET', KEYS[1], 'number') ~= generation then
  return 'generation'
end
local organization = read_organization(KEYS[2], ARGV[7])
if not organization or organization.version > version then
  return 'policy'
end
local value = redis.call('GET', KEYS[4])
local counter = value and unpack_counter(value)
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
local s = find_or_insert_slot(counter.slots, slot_start)
counter.slots[s + SLOT_USED] = counter.slots[s + SLOT_USED] + applied
counter.used, counter.sequence = adjusted, counter.sequence + 1
counter.adjusted = string.format('%.0f:%.0f:%.0f:%.0f', id, applied, adjusted, slot_start)
if clean or not counter.oldest or slot_start < counter.oldest then
  counter.oldest = slot_start
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
