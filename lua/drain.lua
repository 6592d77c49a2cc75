#!lua
--[[
Counts operations of one organization that were admitted while Redis was away, each once.

KEYS
  [1] the shard's generation
  [2] the hash that has the organization
  [3] the shard's dirty index
  [4] the fences: a hash by organization
  then the counters
  then the idempotency records

ARGV
  [1] now                   Unix time, ms
  [2] generation            that the caller expects
  [3] policy version        that the caller resolved before it read the operations
  [4] organization          its id
  [5] lifetime of an idempotency record, ms
  [6] the operations        a flat MessagePack array:
    number of counters, of operations
    then for each counter:
      percents              thresholds in percent of the limit, separated by spaces
    then for each operation, ascending:
      id                    grows from one operation of the organization to the next
      record                index of its idempotency record among counters and records, or 0
      fingerprint           of its payload, only with a record
      number of increments  each of another counter
      then for each increment:
        counter             its index, from 1
        amount              units to add
        slot                start of the slot that they are counted in, ms

Returns one of
  'drained'                 all are counted, now or before
  'generation'              the data set has another generation, or none
  'policy'                  Redis has no policy of the organization, or a newer one, or the organization is fenced
  'restore i'               counter i is missing or of another generation, and must be recovered first
  'closed i'                the period of counter i is closed

Invariants
  Everything is read and decided before the first write, because an error does not roll back.
  A counter contains exactly the operations up to `drained`, which is written in the step that counts.
  An operation whose idempotency record says that it was granted was counted by a call that reached Redis; it is not
  counted again. Any other operation is counted, because it was acknowledged.
  `sequence` grows with every write; a counter whose `sequence` differs from `stored` is in the dirty index.
]]
local now, generation, version, id, record_lifetime = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local FIRST_COUNTER <const> = 5

if redis.call('HGET', KEYS[1], 'number') ~= generation then
  return 'generation'
end
local organization = read_organization(KEYS[2], id)
if not organization or organization.version > version or redis.call('HEXISTS', KEYS[4], id) == 1 then
  return 'policy'
end

local batch = cmsgpack.unpack(ARGV[6])
local counter_count, operation_count = batch[1], batch[2]
local values = redis.call('MGET', unpack(KEYS, FIRST_COUNTER))
-- What each counter had when this began, because several operations may follow each other in it.
local counters, drained, clean = {}, {}, {}
for c = 1, counter_count do
  local counter = values[c] and unpack_counter(values[c])
  local own_generation, enforcement = string.match(counter and counter.stamp or '', '^(%d+):%d+:%d*:(%a):')
  if own_generation ~= generation then
    return 'restore ' .. c
  end
  if string.find(enforcement, '%u') then
    return 'closed ' .. c
  end
  counters[c], drained[c], clean[c] = counter, counter.drained, counter.sequence == counter.stored
  counter.oldest = not clean[c] and counter.oldest or nil
end

local function add(counter, units, slot_start, percents)
  local used = counter.used
  -- The amount was acknowledged; beyond the maximum there is no number for it.
  local added = math.min(units, COUNT_MAX - used)
  local s = find_or_insert_slot(counter.slots, slot_start)
  counter.slots[s + SLOT_USED] = counter.slots[s + SLOT_USED] + added
  counter.used = used + added
  if added > 0 then
    add_crossings(counter, crossings(counter.stamp, percents, used, counter.used, added))
  end
end

local changed, records = {}, {}
local b = 3 + counter_count
for _ = 1, operation_count do
  local operation, record, fingerprint, recorded = batch[b], batch[b + 1], nil, nil
  b = b + 2
  if record > 0 then
    fingerprint, recorded = batch[b], values[record]
    b = b + 1
  end
  local counted = recorded and string.sub(recorded, 1, #fingerprint + 3) == fingerprint .. '|0|'
  local parts = {fingerprint, 0}
  local first = b + 1
  local last = first + 3 * (batch[b] - 1)
  b = last + 3
  for i = first, last, 3 do
    local c, amount, slot_start = batch[i], batch[i + 1], batch[i + 2]
    local counter = counters[c]
    if operation > drained[c] then
      if not counted then
        add(counter, amount, slot_start, batch[2 + c])
      end
      counter.drained, changed[c] = operation, true
      counter.oldest = math.min(counter.oldest or slot_start, slot_start)
    end
    parts[#parts + 1] = string.format('%s %.0f %s 0', string.match(KEYS[c + FIRST_COUNTER - 1], '%d+$'), counter.used,
      counter.stamp)
  end
  if record > 0 and (not recorded or string.sub(recorded, 1, #fingerprint + 3) == fingerprint .. '|1|') then
    records[record] = table.concat(parts, '|')
  end
end

for c in pairs(changed) do
  local key = KEYS[c + FIRST_COUNTER - 1]
  counters[c].sequence = counters[c].sequence + 1
  redis.call('SET', key, pack_counter(counters[c]))
  if clean[c] then
    redis.call('ZADD', KEYS[3], now, key)
  end
end
for record, text in pairs(records) do
  redis.call('SET', KEYS[record + FIRST_COUNTER - 1], text, 'PX', record_lifetime)
end
return 'drained'
