--[[
How count.lua works on a batch: the layout of its arrays, and the steps on one counter. Joined to count.lua.

Every call of a script creates its tables and functions anew, which is most of the cost of a small batch. So there are
few of both: the batch and the replies of Redis are modified in place, arrays are flat, and functions get what they use
as parameters, because each captured variable costs as well.
]]

-- KEYS: the counters follow these.
local LANE_KEYS <const> = 2

-- A rule r is at batch[RULE_SIZE * r + RULE_BASE], its counter, with these behind it.
local RULE_SIZE <const> = 6
local RULE_BASE <const> = -1
local RULE_CAP <const> = 1
local RULE_STAMP <const> = 2
local RULE_SLOT <const> = 3          -- start of the slot; replaced by its index in `slots`
local RULE_LOWEST_MARK <const> = 4
local RULE_PERCENTS <const> = 5

-- A charge: its rule, with these behind it.
local CHARGE_AMOUNT <const> = 1      -- replaced by what a refund gives back
local CHARGE_NEED <const> = 2        -- replaced by the decision
local CHARGE_DECISION <const> = 2
local CHARGE_SIZE <const> = 3

-- Decision of a charge: whose stamp decides, and whether it refuses.
local CALLER_STAMP <const> = 0       -- the caller's, which the counter has
local ADOPTED_STAMP <const> = 1      -- the caller's newer one, which the counter adopts
local COUNTER_STAMP <const> = 2      -- the counter's newer one
local REFUSED <const> = 4            -- added to one of those
local FIRST_REFUSED <const> = 8      -- added to that, for the first call that the counter refuses

-- Kinds of operations.
local TRACK <const> = 0
local CONSUME <const> = 1
local CHECK <const> = 2
local REFUND <const> = 3

-- Replies.
local GRANTED <const> = 0
local DENIED <const> = 1
local REPLAYED <const> = 2
local KEY_REUSED <const> = 3
local MISSING <const> = 4
local FROZEN <const> = 5
local CLOSED <const> = 6
local OVERFLOW <const> = 7
local SOME <const> = 8
local FENCED <const> = 9

-- A counter of the batch: the head of its value, and then these. One that is missing is {false}.
local USED <const> = 1
local SEQUENCE <const> = 2
local STORED <const> = 3
local OLDEST <const> = 4
local STAMP <const> = 5
local REFUSALS <const> = 6
local NEWEST_START <const> = 7
local NEWEST_USED <const> = 8
local NEWEST_DENIED <const> = 9
local LAST_SLOT <const> = 10         -- index in `slots` of the last one of this counter, or false
local LOWEST_SLOT <const> = 11       -- start of the oldest slot that changes; false while the counter does not
local REST <const> = 12              -- position where the rest of the value begins; 0 without one
local VALUE <const> = 13
local FULL <const> = 14              -- the unpacked counter, once needed
local REFUSALS_BEFORE <const> = 15   -- calls refused before the present limit, once needed

-- A slot of the batch in `slots`: its start, with these behind it.
local COUNTED <const> = 1            -- units
local CHANGED <const> = 2
local PREVIOUS_SLOT <const> = 3      -- index of another slot of the same counter, or false
local BATCH_SLOT_SIZE <const> = 4

-- The unpacked counter. Rarely needed.
local function full_counter(counter)
  counter[FULL] = counter[FULL] or unpack_counter(counter[VALUE])
  return counter[FULL]
end

-- Marks the counter as changed in the slot with this start.
local function touch(counter, start)
  if not counter[LOWEST_SLOT] or start < counter[LOWEST_SLOT] then
    counter[LOWEST_SLOT] = start
  end
end

-- Adds units, which are negative for a refund; crossed thresholds are recorded. `mark` is the lowest count that crosses
-- one, or nil, and `step` the amount of a single operation.
local function add_units(counter, slots, slot, units, step, mark, percents)
  local before = counter[USED]
  local after = before + units
  if mark and units > 0 and mark <= after then
    local crossed = crossings(counter[STAMP], percents, before, after, step)
    if crossed ~= '' then
      add_crossings(full_counter(counter), crossed)
    end
  end
  counter[USED], slots[slot + COUNTED], slots[slot + CHANGED] = after, slots[slot + COUNTED] + units, true
  touch(counter, slots[slot])
end

-- The number of calls that the counter has refused, those of this batch included.
local function count_refusals(counter, slots, refusals)
  local count, slot = counter[REFUSALS], counter[LAST_SLOT]
  while slot do
    count, slot = count + (refusals[slot] or 0), slots[slot + PREVIOUS_SLOT]
  end
  return count
end

-- Records that the counter refuses calls; returns whether it has refused none before. The first refusal under a limit
-- crosses that.
local function add_refusals(counter, slots, slot, refusals, count)
  local refused = count_refusals(counter, slots, refusals)
  if not counter[REFUSALS_BEFORE] then
    local notified = counter[FULL] and counter[FULL].notified
      -- Not all of the value, which would have to be packed again.
      or counter[REST] > 0 and cmsgpack.unpack(string.sub(counter[VALUE], counter[REST] + 1))[REST_NOTIFIED] or ''
    counter[REFUSALS_BEFORE] = tonumber(string.match(notified, '%d+$') or 0)
  end
  if refused == counter[REFUSALS_BEFORE] then
    add_crossings(full_counter(counter), string.format('!=%.0f,', counter[USED]))
  end
  refusals[slot] = (refusals[slot] or 0) + count
  touch(counter, slots[slot])
  return refused == 0
end

-- Compares the caller's stamp with a different one of the counter. Returns the reply that ends the operation, if any;
-- else whether the counter adopts the caller's stamp; else the cap of its own.
local function reconcile(stamp, caller_stamp, now)
  local generation, version, limit, enforcement, ends = string.match(stamp, '^(%d+):(%d+):(%d*):(%a):(%d*)$')
  local caller_generation, caller_version, caller_ends = string.match(caller_stamp, '^(%d+):(%d+):%d*:%a:(%d*)$')
  if generation ~= caller_generation then
    return FROZEN
  end
  if string.find(enforcement, '%u') then
    return CLOSED
  end
  -- A period that is over keeps the limit that it ended with.
  local running = caller_ends == '' or now < tonumber(caller_ends)
  if running and tonumber(version) < tonumber(caller_version) then
    return nil, true
  end
  if running and ends ~= '' and now >= tonumber(ends) then
    return CLOSED
  end
  return nil, false, enforcement == 'h' and tonumber(limit) or nil
end

-- Adopts the caller's stamp. If the limit changes, the old one is added to the previous limits.
local function adopt(counter, slots, slot, refusals, stamp)
  local limit = string.match(counter[STAMP], '^%d+:%d+:(%d*:%a):')
  local version, new_limit = string.match(stamp, '^%d+:(%d+):(%d*:%a):')
  if limit ~= new_limit then
    local full, used, denied = full_counter(counter), counter[USED], count_refusals(counter, slots, refusals)
    local notified, since = string.match(full.notified, '^(%d+:%d):(%d+:%d+)$')
    full.previous_limits = full.previous_limits .. string.format('%s:%s:%.0f:%.0f:%.0f:%s ', since, limit,
      math.max(full.peak, used), denied, used, full.crossed)
    full.notified = string.format('%s:%s:%.0f', notified, version, denied)
    full.peak, full.crossed = 0, ''
    counter[REFUSALS_BEFORE] = denied
  end
  counter[STAMP] = stamp
  touch(counter, slots[slot])
end

-- A counter in a reply: the count; 'count stamp' where its own stamp decided; 'count stamp first' where it refused its
-- first call.
local function reading(counter, decision)
  if decision >= FIRST_REFUSED then
    return string.format('%.0f %s first', counter[USED], counter[STAMP])
  elseif decision % REFUSED == COUNTER_STAMP then
    return string.format('%.0f %s', counter[USED], counter[STAMP])
  end
  return counter[USED]
end
