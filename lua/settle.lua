#!lua
--[[
Notes what Postgres holds of some counters of one shard after a flush.

KEYS
  [1] the shard's dirty index
  [2] the shard's generation
  then the counters

ARGV
  [1] the time of reading, ms since the epoch
  then for each counter:
    stamp                   'generation:version', the beginning of the one that was read
    sequence                that was read
    stored                  '1' if Postgres now holds exactly that, '0' where it refused it for something newer
    expiry                  ms since the epoch once clean, or ''
    told                    of its thresholds, see `domain::threshold`, if that was stored with it; or ''
    number of hours stored, number of hours to drop
    for each hour that was stored, ascending: its start in ms, used, denied, refunded
    for each hour to drop once stored, because no event can reach it any more: its start in ms

Returns the number of counters that are clean now.

Invariants
  A counter is clean only where Postgres holds exactly the generation and sequence that the hash has now,
  or something newer of a counter that is frozen in an older generation and has nothing to add to it.
  Nothing is settled of a counter that has another policy version by now: its sequence may be that of a new life
  of the organization, whose counts Postgres does not hold. If it is only a newer limit, the next flush settles it.
  What moved on since the reading keeps its place behind everything that was dirty by then.
  A dirty counter has no expiry.
  An hour leaves only when Postgres holds it as it is.
  What was told of a limit is noted only while that limit holds; with it, the limits before are forgotten.
]]
local read_at = ARGV[1]
local current = redis.call('HGET', KEYS[2], 'number')

-- The oldest hour that differs from what was stored, among those from the first stored one on.
local function oldest_unstored(key, stored, first)
  local oldest
  local values = redis.call('HGETALL', key)
  for i = 1, #values, 2 do
    local field, hour = string.match(values[i], '^([hxr])(%d+)$')
    if field and stored[values[i]] ~= values[i + 1] and tonumber(hour) >= first then
      oldest = math.min(oldest or tonumber(hour), tonumber(hour))
    end
  end
  return oldest
end

-- Drops the hours in ARGV[from] to ARGV[to] that are stored: all that begin before the oldest unstored one.
local function drop(key, from, to, oldest)
  local fields = {}
  for h = from, to do
    if not oldest or tonumber(ARGV[h]) < oldest then
      fields[#fields + 1] = 'h' .. ARGV[h]
      fields[#fields + 1] = 'x' .. ARGV[h]
      fields[#fields + 1] = 'r' .. ARGV[h]
    end
  end
  -- There may be thousands after a long outage; unpack takes about 8000 values.
  for i = 1, #fields, 4000 do
    redis.call('HDEL', key, unpack(fields, i, math.min(i + 3999, #fields)))
  end
end

local function note_told(key, told)
  local since = '^%d+:%d:(%d+):'
  if told ~= '' and string.match(told, since) == string.match(redis.call('HGET', key, 't') or '0:0:0:0', since) then
    redis.call('HSET', key, 't', told)
    redis.call('HDEL', key, 'v')
  end
end

local clean, a = 0, 2
for i = 3, #KEYS do
  local key, stamp, read, stored, expiry = KEYS[i], ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2] == '1', ARGV[a + 3]
  local told, hours = ARGV[a + 4], a + 7
  local drops = hours + tonumber(ARGV[a + 5]) * 4
  a = drops + tonumber(ARGV[a + 6])

  local values = redis.call('HMGET', key, 's', 'f', 'p', 'o')
  local sequence = tonumber(values[1])
  -- Left behind by a rollback: nothing changes it any more, and Postgres holds something newer.
  local superseded = not stored and sequence == read and string.match(stamp, '^%d+') ~= current
  if not sequence then
    redis.call('ZREM', KEYS[1], key)
  elseif string.match(values[3], '^%d+:%d+') ~= stamp or not (stored or superseded) then
    redis.call('ZADD', KEYS[1], 'XX', read_at, key)
  elseif sequence == read then
    redis.call('HSET', key, 'f', read)
    redis.call('ZREM', KEYS[1], key)
    note_told(key, told)
    drop(key, drops, a - 1, nil)
    if expiry ~= '' then
      redis.call('PEXPIREAT', key, expiry)
    end
    clean = clean + 1
  elseif (tonumber(values[2]) or 0) < read then
    redis.call('HSET', key, 'f', read)
    redis.call('ZADD', KEYS[1], read_at, key)
    note_told(key, told)
    local first, noted = tonumber(ARGV[hours]), tonumber(values[4])
    if hours < drops and noted and noted >= first then
      local sent = {}
      for h = hours, drops - 1, 4 do
        sent['h' .. ARGV[h]] = ARGV[h + 1]
        sent['x' .. ARGV[h]] = ARGV[h + 2]
        sent['r' .. ARGV[h]] = ARGV[h + 3]
      end
      local oldest = oldest_unstored(key, sent, first)
      if oldest then
        redis.call('HSET', key, 'o', oldest)
        noted = oldest
      end
    end
    drop(key, drops, a - 1, noted)
  end
end
return clean
