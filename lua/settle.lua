#!lua
--[[
Records what Postgres has of some counters of one shard after a flush.

KEYS
  [1] the shard's dirty index
  [2] the shard's generation
  then the counters

ARGV
  [1] when the counters were read, Unix time in ms
  [2] what was read         a flat MessagePack array, with these for each counter:
    stamp                   'generation:version:', the first parts of the one that was read
    sequence                that was read
    stored                  1 if Postgres now has exactly that, 0 if it refused it for something newer
    notified                thresholds, see `domain::threshold`, if stored with it; or ''
    crossed                 thresholds that were read, which were notified
    number of slots stored, number of slots to drop
    for each slot that was stored, ascending: its start in ms, used, denied, refunded
    for each slot to drop once stored, because no event can reach it: its start in ms

Returns the number of counters that are clean now.

Invariants
  A counter is clean only if Postgres has exactly its present generation and sequence, or has something newer and the
  counter is frozen in an older generation.
  A counter of another policy version is not settled: its sequence may be that of a new incarnation, whose counts
  Postgres does not have. If only the limit is newer, the next flush settles it.
  A counter that has changed since the reading stays dirty, behind everything that was dirty then.
  A slot is dropped only if Postgres has it as it is.
  Notified thresholds are recorded only while their limit is in use; the previous limits are removed with that.
]]
local STAMP <const> = 0
local SEQUENCE <const> = 1
local WAS_STORED <const> = 2
local NOTIFIED <const> = 3
local CROSSED <const> = 4
local STORED_SLOTS <const> = 5
local DROPPED_SLOTS <const> = 6
local SLOTS <const> = 7

local read_at, batch = ARGV[1], cmsgpack.unpack(ARGV[2])
local current = redis.call('HGET', KEYS[2], 'number')

-- The oldest slot that differs from the stored ones, not older than the first of these.
local function oldest_unstored(slots, stored, first)
  local oldest
  for s = 1, #slots, SLOT_SIZE do
    local start = slots[s]
    local slot = stored[start]
    if start >= first and (not slot or slot[1] ~= slots[s + SLOT_USED] or slot[2] ~= slots[s + SLOT_DENIED]
      or slot[3] ~= slots[s + SLOT_REFUNDED]) then
      oldest = start
    end
  end
  return oldest
end

-- Drops the slots in batch[from] to batch[to] that are stored: those before the oldest unstored one.
local function drop_slots(counter, from, to, oldest)
  local dropped, kept = {}, {}
  for b = from, to do
    local start = batch[b]
    dropped[start] = not oldest or start < oldest
  end
  local slots = counter.slots
  for s = 1, #slots do
    if not dropped[slots[s - (s - 1) % SLOT_SIZE]] then
      kept[#kept + 1] = slots[s]
    end
  end
  counter.slots = kept
end

-- Crossed thresholds without those that were notified. Another flush may have removed some of these before.
local function without(crossed, notified)
  return (string.gsub(crossed, '[^,]+,', function(threshold)
    return string.find(',' .. notified, ',' .. threshold, 1, true) and '' or threshold
  end))
end

local function set_notified(counter, notified, crossed)
  local since = '^%d+:%d:(%d+):'
  if notified ~= '' and string.match(notified, since) == string.match(counter.notified, since) then
    counter.notified, counter.previous_limits = notified, ''
    counter.crossed = without(counter.crossed, crossed)
  end
end

local values = redis.call('MGET', unpack(KEYS, 3))
-- Counters to remove from the dirty index; those to move behind, each after its score; keys and values to write.
local settled, moved, writes = {}, {}, {}
local clean, b_next = 0, 1
for i = 3, #KEYS do
  local key, value, b = KEYS[i], values[i - 2], b_next
  local stamp, read, was_stored = batch[b + STAMP], batch[b + SEQUENCE], batch[b + WAS_STORED] == 1
  local notified, crossed, slots = batch[b + NOTIFIED], batch[b + CROSSED], b + SLOTS
  local drops = slots + batch[b + STORED_SLOTS] * SLOT_SIZE
  b_next = drops + batch[b + DROPPED_SLOTS]

  local rest, used, sequence, stored, oldest, own_stamp, denied, start, newest_used, newest_denied
  if value then
    rest, used, sequence, stored, oldest, own_stamp, denied, start, newest_used, newest_denied =
      cmsgpack.unpack_limit(value, HEAD_ITEMS)
  end
  -- Left from before a rollback of Redis: it does not change any more, and Postgres has something newer.
  local superseded = not was_stored and sequence == read and string.match(stamp, '^%d+') ~= current
  if not value then
    settled[#settled + 1] = key
  elseif string.sub(own_stamp, 1, #stamp) ~= stamp or not (was_stored or superseded) then
    redis.call('ZADD', KEYS[1], 'XX', read_at, key)
  elseif sequence == read then
    if notified == '' and drops == b_next then
      -- The usual case, without a table: only the head changes.
      value = cmsgpack.pack(used, sequence, read, nil, own_stamp, denied, start, newest_used, newest_denied)
        .. (rest > 0 and string.sub(value, rest + 1) or '')
    else
      local counter = unpack_counter(value)
      counter.stored, counter.oldest = read, nil
      set_notified(counter, notified, crossed)
      drop_slots(counter, drops, b_next - 1, nil)
      value = pack_counter(counter)
    end
    writes[#writes + 1] = key
    writes[#writes + 1] = value
    settled[#settled + 1] = key
    clean = clean + 1
  elseif stored < read then
    local counter = unpack_counter(value)
    counter.stored = read
    set_notified(counter, notified, crossed)
    local first = batch[slots]
    if slots < drops and oldest and oldest >= first then
      local sent = {}
      for s = slots, drops - 1, SLOT_SIZE do
        sent[batch[s]] = {batch[s + SLOT_USED], batch[s + SLOT_DENIED], batch[s + SLOT_REFUNDED]}
      end
      counter.oldest = oldest_unstored(counter.slots, sent, first) or oldest
    end
    drop_slots(counter, drops, b_next - 1, counter.oldest)
    writes[#writes + 1] = key
    writes[#writes + 1] = pack_counter(counter)
    moved[#moved + 1] = read_at
    moved[#moved + 1] = key
  end
end
if #writes > 0 then
  redis.call('MSET', unpack(writes))
end
if #settled > 0 then
  redis.call('ZREM', KEYS[1], unpack(settled))
end
if #moved > 0 then
  redis.call('ZADD', KEYS[1], unpack(moved))
end
return clean
