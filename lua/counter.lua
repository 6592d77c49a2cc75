--[[
The value of a counter: its format, and functions on it. Joined to every script that reads or writes counters.

A value is a sequence of MessagePack items; ARCHITECTURE.md describes each of them.
  used, sequence, stored, oldest, stamp, denied
  start, used and denied of the newest slot; nil, 0, 0 without slots
  an array, only where one of its items differs from its default:
    refunded, peak, notified, previous limits; default 0 or ''
    adjusted and, behind a space, drained, where there is one; default ''
    refunded in the newest slot
    for each older slot, from the newest to the oldest:
      gap                   seconds from its start to the start of the next newer slot; negative where the last two
                            items are present
      used
      denied, refunded      only where one of them is not 0
    crossed                 crossed thresholds that are not stored yet, as `domain::threshold::Crossed` writes them;
                            only where there are any

Most calls need only the first nine items, which are read and written without a table.
]]
local HEAD_ITEMS <const> = 9

-- The highest count that doubles, `bigint` and JSON represent exactly.
local COUNT_MAX <const> = 9007199254740991

-- Items of the array.
local REST_REFUNDED <const> = 1
local REST_PEAK <const> = 2
local REST_NOTIFIED <const> = 3
local REST_PREVIOUS_LIMITS <const> = 4
local REST_ADJUSTED <const> = 5
local REST_NEWEST_REFUNDED <const> = 6
local REST_SLOTS <const> = 7

-- A slot in `counter.slots`: its start and, behind that, these.
local SLOT_USED <const> = 1
local SLOT_DENIED <const> = 2
local SLOT_REFUNDED <const> = 3
local SLOT_SIZE <const> = 4

-- Unpacks a value into a table. `slots` is a flat array of slots, from the newest to the oldest.
local function unpack_counter(value)
  local at, used, sequence, stored, oldest, stamp, denied, start, newest_used, newest_denied =
    cmsgpack.unpack_limit(value, HEAD_ITEMS)
  local rest = at > 0 and cmsgpack.unpack(string.sub(value, at + 1)) or {0, 0, '', '', '', 0}
  local adjusted, drained = string.match(rest[REST_ADJUSTED], '^(%S*) ?(%d*)$')
  local slots, s = {}, 1
  if start then
    slots[1], slots[2], slots[3], slots[4] = start, newest_used, newest_denied, rest[REST_NEWEST_REFUNDED]
    s = 1 + SLOT_SIZE
  end
  local i = REST_SLOTS
  while type(rest[i]) == 'number' do
    start = start - math.abs(rest[i]) * 1000
    slots[s], slots[s + SLOT_USED], slots[s + SLOT_DENIED], slots[s + SLOT_REFUNDED] = start, rest[i + 1], 0, 0
    if rest[i] < 0 then
      slots[s + SLOT_DENIED], slots[s + SLOT_REFUNDED] = rest[i + 2], rest[i + 3]
      i = i + 2
    end
    s, i = s + SLOT_SIZE, i + 2
  end
  return {
    used = used, sequence = sequence, stored = stored, oldest = oldest, stamp = stamp, denied = denied,
    refunded = rest[REST_REFUNDED], peak = rest[REST_PEAK],
    notified = rest[REST_NOTIFIED] ~= '' and rest[REST_NOTIFIED] or '0:0:0:0',
    previous_limits = rest[REST_PREVIOUS_LIMITS], adjusted = adjusted, drained = tonumber(drained) or 0, slots = slots,
    crossed = rest[i] or '',
  }
end

-- The inverse of `unpack_counter`.
local function pack_counter(counter)
  local slots = counter.slots
  local head = cmsgpack.pack(counter.used, counter.sequence, counter.stored, counter.oldest, counter.stamp,
    counter.denied, slots[1], slots[2] or 0, slots[3] or 0)
  local notified = counter.notified ~= '0:0:0:0' and counter.notified or ''
  local adjusted = counter.adjusted .. (counter.drained > 0 and string.format(' %.0f', counter.drained) or '')
  local newest_refunded = slots[4] or 0
  if not slots[1 + SLOT_SIZE] and notified == '' and counter.previous_limits == '' and adjusted == ''
    and counter.refunded == 0 and counter.peak == 0 and newest_refunded == 0 and counter.crossed == '' then
    return head
  end
  local rest = {counter.refunded, counter.peak, notified, counter.previous_limits, adjusted, newest_refunded}
  local i = REST_SLOTS
  for s = 1 + SLOT_SIZE, #slots, SLOT_SIZE do
    local denied, refunded = slots[s + SLOT_DENIED], slots[s + SLOT_REFUNDED]
    rest[i], rest[i + 1] = (slots[s - SLOT_SIZE] - slots[s]) / 1000, slots[s + SLOT_USED]
    if denied ~= 0 or refunded ~= 0 then
      rest[i], rest[i + 2], rest[i + 3] = -rest[i], denied, refunded
      i = i + 2
    end
    i = i + 2
  end
  if counter.crossed ~= '' then
    rest[i] = counter.crossed
  end
  return head .. cmsgpack.pack(rest)
end

-- An empty counter, as a table.
local function new_counter(stamp)
  return {
    used = 0, sequence = 0, stored = 0, stamp = stamp, denied = 0,
    refunded = 0, peak = 0, notified = '0:0:0:0', previous_limits = '', adjusted = '', drained = 0,
    slots = {}, crossed = '',
  }
end

-- The thresholds of a stamp's limit that are crossed when a count goes from `before` to `after` in steps of `step`: the
-- percentages, and the limit itself as '!'. Each comes with the first count that has crossed it.
local function crossings(stamp, percents, before, after, step)
  local limit = tonumber(string.match(stamp, '^%d+:%d+:(%d+)'))
  local crossed = ''
  local function check(threshold, mark)
    if before < mark and mark <= after then
      local count = before + math.ceil((mark - before) / step) * step
      crossed = string.format('%s%s=%.0f,', crossed, threshold, count)
    end
  end
  if limit and limit > 0 then
    -- Computed in two parts, because limit * percent may exceed 2^53.
    local hundredth, rest = math.floor(limit / 100), limit % 100
    for percent in string.gmatch(percents, '%d+') do
      check(percent, hundredth * percent + math.ceil(rest * percent / 100))
    end
  end
  if limit then
    check('!', limit + 1)
  end
  return crossed
end

-- Adds crossed thresholds to those that the counter has; the first count of each is kept.
local function add_crossings(counter, crossed)
  for threshold, count in string.gmatch(crossed, '([^=,]+)=(%d+)') do
    if not string.find(',' .. counter.crossed, ',' .. threshold .. '=', 1, true) then
      counter.crossed = counter.crossed .. threshold .. '=' .. count .. ','
    end
  end
end

-- The index of the slot with this start; an empty slot is inserted where there is none.
local function find_or_insert_slot(slots, start)
  local s = 1
  while slots[s] and slots[s] > start do
    s = s + SLOT_SIZE
  end
  if slots[s] ~= start then
    for i = #slots, s, -1 do
      slots[i + SLOT_SIZE] = slots[i]
    end
    slots[s], slots[s + SLOT_USED], slots[s + SLOT_DENIED], slots[s + SLOT_REFUNDED] = start, 0, 0, 0
  end
  return s
end
