#!lua flags=allow-oom
--[[
Erases counters and idempotency records of a deleted organization.

KEYS
  [1] the shard's dirty index
  then the counters
  then the idempotency records

ARGV
  [1] incarnation           policy version of the organization's deletion
  [2] number of counters

Returns {counters, records}: how many of each were erased.

Invariants
  Nothing takes more memory than before.
  Only what a policy older than the deletion decided is erased: what was counted since stays.
  The dirty index has no counter that was erased.
]]
local incarnation, counter_count = tonumber(ARGV[1]), tonumber(ARGV[2])
local counters, records = 0, 0
for i = 2, #KEYS do
  local value = redis.call('GET', KEYS[i])
  if i <= counter_count + 1 then
    if value and tonumber(string.match(unpack_counter(value).stamp, '^%d+:(%d+):')) < incarnation then
      redis.call('DEL', KEYS[i])
      redis.call('ZREM', KEYS[1], KEYS[i])
      counters = counters + 1
    end
  else
    local version = value and string.match(value, ' %d+:(%d+):%d*:%a:%d*')
    if value and (not version or tonumber(version) < incarnation) then
      redis.call('DEL', KEYS[i])
      records = records + 1
    end
  end
end
return {counters, records}
