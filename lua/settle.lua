#!lua
--[[
Notes what Postgres holds of some counters of one shard after a flush.

KEYS
  [1] the shard's dirty index
  [2] the shard's generation
  then the counters

ARGV
  [1] the time of reading, ms since the epoch
  [2] what was read         a MessagePack array without inner arrays, with these for each counter:
    stamp                   'generation:version:', the beginning of the one that was read
    sequence                that was read
    stored                  1 if Postgres now holds exactly that, 0 where it refused it for something newer
    told                    of its thresholds, see `domain::threshold`, if that was stored with it; or ''
    length                  of what it had crossed, which is told with that
    number of hours stored, number of hours to drop
    for each hour that was stored, ascending: its start in ms, used, denied, refunded
    for each hour to drop once stored, because no event can reach it any more: its start in ms

Returns the number of counters that are clean now.

Invariants
  A counter is clean only where Postgres holds exactly the generation and sequence that the counter has now,
  or something newer of a counter that is frozen in an older generation and has nothing to add to it.
  Nothing is settled of a counter that has another policy version by now: its sequence may be that of a new life
  of the organization, whose counts Postgres does not hold. If it is only a newer limit, the next flush settles it.
  What moved on since the reading keeps its place behind everything that was dirty by then.
  An hour leaves only when Postgres holds it as it is.
  What was told of a limit is noted only while that limit holds; with it, the limits before are forgotten.
]]
local read_at, batch = ARGV[1], cmsgpack.unpack(ARGV[2])
local current = redis.call('HGET', KEYS[2], 'number')

-- The oldest hour that differs from what was stored, among those from the first stored one on.
local function oldest_unstored(hours, stored, first)
  local oldest
  for h = 1, #hours, 4 do
    local start = hours[h]
    local it = stored[start]
    if start >= first
      and (not it or it[1] ~= hours[h + 1] or it[2] ~= hours[h + 2] or it[3] ~= hours[h + 3]) then
      oldest = start
    end
  end
  return oldest
end

-- Drops the hours in batch[from] to batch[to] that are stored: all that begin before the oldest unstored one.
local function drop(counter, from, to, oldest)
  local dropped, left = {}, {}
  for b = from, to do
    local start = batch[b]
    dropped[start] = not oldest or start < oldest
  end
  local hours = counter.hours
  for h = 1, #hours do
    if not dropped[hours[h - (h - 1) % 4]] then
      left[#left + 1] = hours[h]
    end
  end
  counter.hours = left
end

local function note_told(counter, told, length)
  local since = '^%d+:%d:(%d+):'
  if told ~= '' and string.match(told, since) == string.match(counter.told, since) then
    -- Under one limit, what it crosses is only ever added to.
    counter.told, counter.past, counter.crossed = told, '', string.sub(counter.crossed, length + 1)
  end
end

local held = redis.call('MGET', unpack(KEYS, 3))
-- Counters that leave the index; those that have moved on, each behind its score; and what is written.
local leaving, moved_on, writes = {}, {}, {}
local clean, b = 0, 1
for i = 3, #KEYS do
  local key, value, stamp, read, was_stored = KEYS[i], held[i - 2], batch[b], batch[b + 1], batch[b + 2] == 1
  local told, length, hours = batch[b + 3], batch[b + 4], b + 7
  local drops = hours + batch[b + 5] * 4
  b = drops + batch[b + 6]

  local rest, used, sequence, stored, oldest, own_stamp, denied, start, hour_used, hour_denied
  if value then
    rest, used, sequence, stored, oldest, own_stamp, denied, start, hour_used, hour_denied =
      cmsgpack.unpack_limit(value, HEAD)
  end
  -- Left behind by a rollback: nothing changes it any more, and Postgres holds something newer.
  local superseded = not was_stored and sequence == read and string.match(stamp, '^%d+') ~= current
  if not value then
    leaving[#leaving + 1] = key
  elseif string.sub(own_stamp, 1, #stamp) ~= stamp or not (was_stored or superseded) then
    redis.call('ZADD', KEYS[1], 'XX', read_at, key)
  elseif sequence == read then
    if told == '' and drops == b then
      -- The usual case, without a table.
      value = cmsgpack.pack(used, sequence, read, nil, own_stamp, denied, start, hour_used, hour_denied)
        .. (rest > 0 and string.sub(value, rest + 1) or '')
    else
      local counter = unpack_counter(value)
      counter.stored, counter.oldest = read, nil
      note_told(counter, told, length)
      drop(counter, drops, b - 1, nil)
      value = pack_counter(counter)
    end
    writes[#writes + 1] = key
    writes[#writes + 1] = value
    leaving[#leaving + 1] = key
    clean = clean + 1
  elseif stored < read then
    local counter = unpack_counter(value)
    counter.stored = read
    note_told(counter, told, length)
    local first = batch[hours]
    if hours < drops and oldest and oldest >= first then
      local sent = {}
      for h = hours, drops - 1, 4 do
        sent[batch[h]] = {batch[h + 1], batch[h + 2], batch[h + 3]}
      end
      counter.oldest = oldest_unstored(counter.hours, sent, first) or oldest
    end
    drop(counter, drops, b - 1, counter.oldest)
    writes[#writes + 1] = key
    writes[#writes + 1] = pack_counter(counter)
    moved_on[#moved_on + 1] = read_at
    moved_on[#moved_on + 1] = key
  end
end
if #writes > 0 then
  redis.call('MSET', unpack(writes))
end
if #leaving > 0 then
  redis.call('ZREM', KEYS[1], unpack(leaving))
end
if #moved_on > 0 then
  redis.call('ZADD', KEYS[1], unpack(moved_on))
end
return clean
