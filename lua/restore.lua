#!lua
--[[
Writes a counter that Postgres has moved to this generation, unless it is there already.

KEYS
  [1] the shard's generation
  [2] the hash that has the organization
  [3] the shard's dirty index
  [4] the counter
  [5] the fences: a hash by organization

ARGV
  [1] generation            that the row was moved to
  [2] policy version        that the caller resolved
  [3] meters                every meter that Postgres has of the organization, separated by spaces
  [4] moved                 sequence and stamp of the old counter that was stored before the move, joined by a space; ''
                            if there was none
  [5] stamp
  [6] used
  [7] denied
  [8] refunded
  [9] sequence              of the row
  [10] notified             thresholds, see `domain::threshold`; '' if none
  [11] adjusted             the last adjustment that the count contains, or ''
  [12] dirty since          Unix time in ms if thresholds may have to be notified, or ''
  [13] drained              the last pending operation that the count contains, or 0
  [14] organization         its id
  then for each slot, ascending: its start in ms, used, denied, refunded

Returns one of
  'restored'
  'exists'                  the counter is there already, in this generation
  'generation'              the data set has another generation, or none
  'policy'                  Redis has no policy of the organization, or a newer one, or the organization is fenced
  'changed'                 the old counter is not the one that was stored before the move

Invariants
  A counter of this generation is never overwritten.
  No counter of a fenced organization is created, because its period may be about to be abandoned.
  A restored counter has what Postgres has; it is clean, unless a flush must examine its thresholds.
]]
local FIRST_SLOT <const> = 15
local generation = ARGV[1]
if redis.call('HGET', KEYS[1], 'number') ~= generation then
  return 'generation'
end
local organization = read_organization(KEYS[2], ARGV[14])
if not organization or organization.version > tonumber(ARGV[2]) or redis.call('HEXISTS', KEYS[5], ARGV[14]) == 1 then
  return 'policy'
end
local value = redis.call('GET', KEYS[4])
local old = value and unpack_counter(value)
if old and string.match(old.stamp, '^%d+') == generation then
  return 'exists'
end
if ARGV[4] ~= (old and string.format('%.0f %s', old.sequence, old.stamp) or '') then
  return 'changed'
end

for meter in string.gmatch(ARGV[3], '%S+') do
  add_meter(organization, meter)
end
local clean = ARGV[12] == ''
local counter = new_counter(ARGV[5])
counter.used, counter.denied, counter.refunded = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
counter.sequence = tonumber(ARGV[9])
if clean then
  counter.stored = counter.sequence
end
counter.notified, counter.adjusted, counter.drained = ARGV[10], ARGV[11], tonumber(ARGV[13])
for i = #ARGV - SLOT_SIZE + 1, FIRST_SLOT, -SLOT_SIZE do
  for field = i, i + SLOT_SIZE - 1 do
    counter.slots[#counter.slots + 1] = tonumber(ARGV[field])
  end
end
write_organization(KEYS[2], ARGV[14], organization)
redis.call('SET', KEYS[4], pack_counter(counter))
if clean then
  redis.call('ZREM', KEYS[3], KEYS[4])
else
  redis.call('ZADD', KEYS[3], ARGV[12], KEYS[4])
end
return 'restored'
