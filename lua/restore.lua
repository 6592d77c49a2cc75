#!lua
--[[
Writes a counter that Postgres has moved to this generation, if it is not there already.

KEYS
  [1] the shard's generation
  [2] the hash that has the organization
  [3] the shard's dirty index
  [4] the counter

ARGV
  [1] generation            that the row was moved to
  [2] policy version        that the caller resolved
  [3] meters                every meter that Postgres knows of the organization, separated by spaces
  [4] held                  the sequence and the stamp that were stored before the move, joined by a space; '' if there
                            was none
  [5] stamp
  [6] used
  [7] denied
  [8] refunded
  [9] sequence              of the row
  [10] told                 of its thresholds, see `domain::threshold`; '' if nothing was
  [11] adjusted             the last adjustment that the count contains, or ''
  [12] dirty since          ms since the epoch where something may not have been told yet, or ''
  [13] organization         its id
  then for each hour, ascending: its start in ms, used, denied, refunded

Returns one of
  'restored'
  'exists'                  somebody else has restored it
  'generation'              the data set has another generation, or none
  'policy'                  Redis knows no policy of the organization, or a newer one
  'changed'                 the old content is not what was stored before the move

Invariants
  A counter of this generation is never overwritten.
  A restored counter holds what Postgres holds; it is clean, unless a flush must look at it once more.
]]
local generation = ARGV[1]
if redis.call('HGET', KEYS[1], 'number') ~= generation then
  return 'generation'
end
local organization = read_organization(KEYS[2], ARGV[13])
if not organization or organization.version > tonumber(ARGV[2]) then
  return 'policy'
end
local held = redis.call('GET', KEYS[4])
local old = held and unpack_counter(held)
if old and string.match(old.stamp, '^%d+') == generation then
  return 'exists'
end
if ARGV[4] ~= (old and string.format('%.0f %s', old.sequence, old.stamp) or '') then
  return 'changed'
end

for meter in string.gmatch(ARGV[3], '%S+') do
  list_meter(organization, meter)
end
local clean = ARGV[12] == ''
local counter = new_counter(ARGV[5])
counter.used, counter.denied, counter.refunded = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
counter.sequence = tonumber(ARGV[9])
if clean then
  counter.stored = counter.sequence
end
counter.told, counter.adjusted = ARGV[10], ARGV[11]
for i = #ARGV - 3, 14, -4 do
  for field = i, i + 3 do
    counter.hours[#counter.hours + 1] = tonumber(ARGV[field])
  end
end
write_organization(KEYS[2], ARGV[13], organization)
redis.call('SET', KEYS[4], pack_counter(counter))
if clean then
  redis.call('ZREM', KEYS[3], KEYS[4])
else
  redis.call('ZADD', KEYS[3], ARGV[12], KEYS[4])
end
return 'restored'
