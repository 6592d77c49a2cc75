#!lua
--[[
Finishes a reset that is committed in Postgres: closes the counter of the period that it ended and starts the next one,
in one step, so that no unit is counted in both or in neither.

KEYS
  [1] the shard's generation
  [2] the hash that has the organization
  [3] the shard's dirty index
  [4] the counter that the reset closes
  [5] the counter that starts at the reset
  [6] the fences: a hash by organization

ARGV
  [1] now                   Unix time, ms
  [2] generation            that the caller expects
  [3] policy version        that the caller resolved, which includes the reset
  [4] meter
  [5] stamp                 of the counter that starts
  [6] start                 of the period that the reset closes, ms
  [7] the reset             ms: end of that period and start of the next
  [8] margin                ms by which the data set must be older than a period: earliest event and clock skew
  [9] organization          its id

Returns one of
  'closed'                  done, now or before
  'generation'              the data set has another generation, or none
  'policy'                  Redis has no policy of the organization, or a newer one, or the organization is fenced
  'restore_closed'          nothing was done: the counter to close must be restored from Postgres first
  'restore'                 it is closed; the counter that starts must be restored from Postgres

Invariants
  A counter starts at a reset only in a data set in which the one before it is closed.
  No counter of a fenced organization is created, because its period may be about to be abandoned.
  A closed counter stays closed, with the limit and the enforcement that it had, under the version of the reset.
  Missing is unknown, never zero: only a data set older than a period can tell that a counter never existed, and only if
  no counter of that period was garbage-collected.
  A missing counter is created closed, so that no late event finds it open.
  A counter that is closed here is dirty: its snapshot ends the period in Postgres.
]]
local now, generation, version, meter, stamp = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local start, reset, margin, id = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8]), ARGV[9]

local data_set = redis.call('HMGET', KEYS[1], 'number', 'born', 'forgotten')
if data_set[1] ~= generation then
  return 'generation'
end
local organization = read_organization(KEYS[2], id)
if not organization or organization.version > tonumber(version) or redis.call('HEXISTS', KEYS[6], id) == 1 then
  return 'policy'
end
local old_value, new_value = redis.call('GET', KEYS[4]), redis.call('GET', KEYS[5])
local old = old_value and unpack_counter(old_value) or new_counter(stamp)
local old_generation, limit, enforcement = string.match(old.stamp, '^(%d+):%d+:(%d*):(%a)')
if old_value and old_generation ~= generation
  or not old_value and not never_existed(data_set[2], data_set[3], margin, start, reset) then
  return 'restore_closed'
end
local started = new_value and string.match(unpack_counter(new_value).stamp, '^%d+') == generation

if not string.find(enforcement, '%u') or not old_value then
  local clean = old.sequence == old.stored
  old.sequence = old.sequence + 1
  old.stamp = table.concat({generation, version, limit, string.upper(enforcement), reset}, ':')
  redis.call('SET', KEYS[4], pack_counter(old))
  if clean then
    redis.call('ZADD', KEYS[3], now, KEYS[4])
  end
end
if started then
  return 'closed'
end
if new_value
  or not never_existed(data_set[2], data_set[3], margin, tonumber(reset), string.match(stamp, '%d*$')) then
  return 'restore'
end
if add_meter(organization, meter) then
  write_organization(KEYS[2], id, organization)
end
redis.call('SET', KEYS[5], pack_counter(new_counter(stamp)))
return 'closed'
