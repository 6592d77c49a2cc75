#!lua flags=allow-oom
--[[
Erases what a deleted organization has left: counters, and idempotency records.

KEYS
  [1] the shard's dirty index
  then the counters
  then the idempotency records

ARGV
  [1] incarnation           policy version of the organization's deletion
  [2] number of counters

Returns {counters, records}: how many were erased.

Invariants
  Nothing takes more room than before.
  Only what an older policy than that of the deletion decided is erased: what was counted since stays.
  The dirty index names no counter that was erased.
]]
local incarnation, counter_count = tonumber(ARGV[1]), tonumber(ARGV[2])
local counters, records = 0, 0
for i = 2, #KEYS do
  if i <= counter_count + 1 then
    local held = redis.call('GET', KEYS[i])
    if held and tonumber(string.match(unpack_counter(held).stamp, '^%d+:(%d+):')) < incarnation then
      redis.call('DEL', KEYS[i])
      redis.call('ZREM', KEYS[1], KEYS[i])
      counters = counters + 1
    end
  else
    local record = redis.call('GET', KEYS[i])
    local version = record and string.match(record, ' %d+:(%d+):%d*:%a:%d*')
    if record and (not version or tonumber(version) < incarnation) then
      redis.call('DEL', KEYS[i])
      records = records + 1
    end
  end
end
return {counters, records}
