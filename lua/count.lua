#!lua
--[[
Decides and counts a batch of operations. Each has one or more charges, and counts all of them or none.
The rule is that of `domain::decision::decide`. A batch that is sent again is executed at most once.

KEYS
  [1] the lane's receipt
  [2] the generation of the shard that has the receipt
  then the counters
  then the idempotency records of the operations
  then the dirty indexes of the counters' shards
  then the fences: a hash by organization

ARGV
  [1] now                           Unix time, ms
  [2] lifetime of an idempotency record, ms
  [3] lifetime of a receipt, ms
  [4] number of the batch           grows from batch to batch of a lane
  [5] '1' if this batch was sent before and its reply was lost, otherwise '0'
  [6] generation                    of the receipt's shard, as the caller knows it; '' if it has no number
  [7] number of the last batch      that was acknowledged, and whose receipt has not expired, or 0
  [8] the batch                     a flat MessagePack array:
    number of counters, of idempotency records, of rules, of operations
    then for each rule:
      counter                       its index among the counters, from 1
      cap                           the highest count that this stamp grants, nil if there is none
      stamp                         'generation:version:limit:enforcement:end', see `redis::stamp`
      slot                          start of the slot that the units belong to, ms
      mark                          the lowest count that crosses a threshold of this stamp, nil if there is none
      percents                      thresholds in percent of the limit, separated by spaces
    then for each operation:
      kind                          0 track, 1 consume, 2 check, 3 refund
      times                         number of equal operations that this one stands for; above 1 only for a track or a
                                    consume with a single charge and no idempotency record
      record                        index of its idempotency record among counters and records, or 0
      fingerprint of the payload    only with a record
      number of charges             each of another counter
      then for each charge:
        rule                        its index among the rules, from 1
        amount                      units to count if granted, or to give back; 0 where the meter is only required
        need                        units that must fit, at least the amount
    then for each counter:
      index                         index of its dirty index in KEYS

Returns a flat MessagePack array, with these for each operation:
  0, used…       granted; the count of each counter, and then, for a refund, the units given back to each
  1, used…       denied; nothing counted
  2, record      replayed: the record of this idempotency key
  3              the idempotency key was used for another payload
  4, i           charge i: the counter is missing, which means unknown
  5, i           charge i: the counter is of another generation
  6, i           charge i: its period is closed, or is over by a newer policy
  7, i           charge i: the count would exceed 2^53 - 1
  8, n, used     of several equal operations the first n were granted, the others denied
  9, i           charge i: the organization is fenced
A count is an integer, or 'count stamp' if the counter's own stamp decided instead of the caller's, or 'count stamp
first' if the counter refused its first call.
Returns nil, and counts nothing, if the batch was sent before and its outcome is unknown, or if a later one was
executed.
Returns a status, and counts nothing, if Redis has other data than the caller believes:
  generation     the data set has another generation
  older          the data set lacks a batch that was acknowledged

Invariants
  Everything is read and decided before the first write, because an error does not roll back.
  A batch number is executed once: its receipt is written in the same step, under the data set's name.
  Nothing is counted in a data set that lacks the last batch of this lane that was acknowledged.
  Nothing is decided for a fenced organization.
  Only receipts and idempotency records are created: a missing counter stays missing.
  A counter is in the dirty index whenever its `sequence` differs from `stored`.
  Only final results (granted, denied) become idempotency records.
  A count never falls below 0: a refund gives back at most what was counted.
  `sequence` grows with every write. A newer policy version is never replaced by an older one.
  Refunds and changed limits leave in the counter what a flush needs to find crossed thresholds.
  The first count that crossed each threshold of the limit stays in the counter until it is notified.
]]
local now, record_lifetime, receipt_lifetime = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local number, sent_before = tonumber(ARGV[4]), ARGV[5] == '1'

-- 1. A batch that was executed is answered from its receipt, 'name of the data set|number|replies', also if the data set
-- has got another name since: the counters that it counted in are there too.

local data_set = redis.call('HMGET', KEYS[2], 'name', 'number', 'former')
local name = data_set[1] or ''
local receipt = redis.call('GETRANGE', KEYS[1], 0, 63)
local last_name, last_number = string.match(receipt, '^([^|]*)|(%d+)|')
local known = last_name == name and name ~= ''
if known and tonumber(last_number) > number then
  return nil
end
if last_number and tonumber(last_number) == number and (known or last_name == data_set[3]) then
  return string.sub(redis.call('GET', KEYS[1]), #last_name + #last_number + 3)
end
if sent_before and not known then
  return nil
end
if (data_set[2] or '') ~= ARGV[6] then
  return redis.status_reply('generation')
end
local acknowledged = tonumber(ARGV[7])
if acknowledged > 0 and not (known and tonumber(last_number) >= acknowledged) then
  return redis.status_reply('older')
end

-- 2. Read counters and records, and find the slot of each rule.

local batch = cmsgpack.unpack(ARGV[8])
local counter_count, record_count, rule_count, operation_count = batch[1], batch[2], batch[3], batch[4]
-- The first batch of a lane only writes a receipt.
local values = counter_count > 0
  and redis.call('MGET', unpack(KEYS, 1 + LANE_KEYS, counter_count + record_count + LANE_KEYS))
-- Nearly always there is no fence at all.
local fences = redis.call('EXISTS', KEYS[#KEYS]) == 1 and KEYS[#KEYS]
local counters = {}
-- The slots of this batch; by slot, the calls refused and the units given back, where there are any.
local slots, slots_end, refusals, returns = {}, 1, {}, {}

for r = 1, rule_count do
  local rule = RULE_SIZE * r + RULE_BASE
  local c, start = batch[rule], batch[rule + RULE_SLOT]
  local counter = counters[c]
  if not counter then
    local value = values[c]
    if value then
      local rest, used, sequence, stored, oldest, stamp, denied, newest, newest_used, newest_denied =
        cmsgpack.unpack_limit(value, HEAD_ITEMS)
      counter = {used, sequence, stored, oldest, stamp, denied, newest, newest_used, newest_denied, false, false, rest,
        value, false}
    else
      counter = {false}
    end
    counters[c] = counter
  end
  local slot = counter[LAST_SLOT]
  while slot and slots[slot] ~= start do
    slot = slots[slot + PREVIOUS_SLOT]
  end
  if not slot then
    slot, slots_end = slots_end, slots_end + BATCH_SLOT_SIZE
    local counted = 0
    if counter[NEWEST_START] == start then
      counted = counter[NEWEST_USED]
    elseif counter[NEWEST_START] and counter[NEWEST_START] > start then
      local all = full_counter(counter).slots
      for s = 1, #all, SLOT_SIZE do
        if all[s] == start then
          counted = all[s + SLOT_USED]
        end
      end
    end
    slots[slot], slots[slot + COUNTED], slots[slot + CHANGED] = start, counted, false
    slots[slot + PREVIOUS_SLOT], counter[LAST_SLOT] = counter[LAST_SLOT] or false, slot
  end
  batch[rule + RULE_SLOT] = slot
end

-- 3. Decide each operation in turn. Counts change in `counters` and `slots` only.

local replies, n = {}, 0
local new_records = {}
local b = RULE_SIZE * (rule_count + 1) + RULE_BASE
for _ = 1, operation_count do
  local kind, times, record, fingerprint, recorded = batch[b], batch[b + 1], batch[b + 2], nil, nil
  b = b + 3
  if record > 0 then
    fingerprint, recorded = batch[b], values[record]
    b = b + 1
  end
  local charge_count, first = batch[b], b + 1
  local last = first + CHARGE_SIZE * (charge_count - 1)
  b = last + CHARGE_SIZE

  if recorded then
    local separator = string.find(recorded, '|', 1, true)
    if string.sub(recorded, 1, separator - 1) == fingerprint then
      replies[n + 1], replies[n + 2] = REPLAYED, string.sub(recorded, separator + 1)
      n = n + 2
    else
      n = n + 1
      replies[n] = KEY_REUSED
    end
  else
    -- What prevents a decision, and at which charge.
    local reason, failed_at, denied, overflow, cap = nil, nil, false, nil, nil
    for at = first, last, CHARGE_SIZE do
      local rule, decision = RULE_SIZE * batch[at] + RULE_BASE, CALLER_STAMP
      local counter = counters[batch[rule]]
      local used = counter[USED]
      cap = batch[rule + RULE_CAP]
      if fences and redis.call('HEXISTS', fences, string.match(KEYS[batch[rule] + LANE_KEYS], '}:u:([^:]+):')) == 1 then
        reason, failed_at = FENCED, at
        break
      end
      if not used then
        reason, failed_at = MISSING, at
        break
      end
      if counter[STAMP] ~= batch[rule + RULE_STAMP] then
        local adopts, own_cap
        reason, adopts, own_cap = reconcile(counter[STAMP], batch[rule + RULE_STAMP], now)
        if reason then
          failed_at = at
          break
        end
        if adopts then
          decision = ADOPTED_STAMP
        else
          decision, cap = COUNTER_STAMP, own_cap
        end
      end
      if kind == TRACK or kind == REFUND then
        cap = nil
      end
      if times == 1 then
        if cap and used + batch[at + CHARGE_NEED] > cap then
          decision, denied = decision + REFUSED, true
        elseif kind ~= REFUND and used + batch[at + CHARGE_AMOUNT] > COUNT_MAX then
          if kind == CHECK then
            decision, denied = decision + REFUSED, true
          else
            overflow = overflow or at
          end
        end
      end
      batch[at + CHARGE_DECISION] = decision
    end
    if overflow and not denied and not reason then
      reason, failed_at = OVERFLOW, overflow
    end

    if reason then
      replies[n + 1], replies[n + 2] = reason, (failed_at - first) / CHARGE_SIZE + 1
      n = n + 2
    elseif times > 1 then
      -- Several equal operations: as many as fit are granted.
      local rule, amount, decision = RULE_SIZE * batch[first] + RULE_BASE, batch[first + CHARGE_AMOUNT],
        batch[first + CHARGE_DECISION]
      local counter, slot = counters[batch[rule]], batch[rule + RULE_SLOT]
      local granted = math.max(0, math.min(times, math.floor(((cap or COUNT_MAX) - counter[USED]) / amount)))
      if decision == ADOPTED_STAMP and (granted > 0 or cap) then
        adopt(counter, slots, slot, refusals, batch[rule + RULE_STAMP])
      end
      if granted > 0 then
        local mark = decision == COUNTER_STAMP and 0 or batch[rule + RULE_LOWEST_MARK]
        add_units(counter, slots, slot, granted * amount, amount, mark, batch[rule + RULE_PERCENTS])
      end
      if cap and granted < times and add_refusals(counter, slots, slot, refusals, times - granted) then
        decision = FIRST_REFUSED
      end
      replies[n + 1], replies[n + 2], replies[n + 3] = SOME, granted, reading(counter, decision)
      n = n + 3
    else
      n = n + 1
      replies[n] = denied and DENIED or GRANTED
      local status_at = n
      for at = first, last, CHARGE_SIZE do
        local rule, amount, decision = RULE_SIZE * batch[at] + RULE_BASE, batch[at + CHARGE_AMOUNT],
          batch[at + CHARGE_DECISION]
        local counter, slot = counters[batch[rule]], batch[rule + RULE_SLOT]
        if kind ~= CHECK then
          if decision % REFUSED == ADOPTED_STAMP then
            adopt(counter, slots, slot, refusals, batch[rule + RULE_STAMP])
          end
          if decision >= REFUSED then
            if add_refusals(counter, slots, slot, refusals, 1) then
              decision = decision + FIRST_REFUSED
              batch[at + CHARGE_DECISION] = decision
            end
          elseif kind == REFUND then
            local units = math.min(amount, counter[USED])
            batch[at + CHARGE_AMOUNT] = units
            if units > 0 then
              local full = full_counter(counter)
              full.peak = math.max(full.peak, counter[USED])
              returns[slot] = (returns[slot] or 0) + units
              add_units(counter, slots, slot, -units)
            end
          elseif not denied and amount > 0 then
            local mark = decision == COUNTER_STAMP and 0 or batch[rule + RULE_LOWEST_MARK]
            add_units(counter, slots, slot, amount, amount, mark, batch[rule + RULE_PERCENTS])
          end
        end
        n = n + 1
        replies[n] = reading(counter, decision)
      end
      if kind == REFUND then
        for at = first, last, CHARGE_SIZE do
          n = n + 1
          replies[n] = batch[at + CHARGE_AMOUNT]
        end
      end
      if record > 0 then
        -- 'fingerprint|status|start used stamp returned|…'
        local parts = {fingerprint, replies[status_at]}
        for at = first, last, CHARGE_SIZE do
          local rule, decision = RULE_SIZE * batch[at] + RULE_BASE, batch[at + CHARGE_DECISION]
          local counter, start = counters[batch[rule]], string.match(KEYS[batch[rule] + LANE_KEYS], '%d+$')
          local stamp = decision % REFUSED == COUNTER_STAMP and counter[STAMP] or batch[rule + RULE_STAMP]
          local returned = kind == REFUND and batch[at + CHARGE_AMOUNT] or 0
          parts[#parts + 1] = string.format('%s %.0f %s %.0f%s', start, counter[USED], stamp, returned,
            decision >= FIRST_REFUSED and ' first' or '')
        end
        values[record] = table.concat(parts, '|')
        new_records[#new_records + 1] = record
      end
    end
  end
end

-- 4. Write: counters, dirty indexes, idempotency records, receipt.

local writes, w = {}, 0
-- By dirty index, the counters to add, each behind its score.
local additions = {}
for c = 1, counter_count do
  local counter = counters[c]
  local lowest, slot = counter[LOWEST_SLOT], counter[LAST_SLOT]
  if lowest then
    local oldest = counter[OLDEST]
    if counter[SEQUENCE] == counter[STORED] then
      local index = batch[b + c - 1]
      local entries = additions[index] or {}
      entries[#entries + 1] = now
      entries[#entries + 1] = KEYS[c + LANE_KEYS]
      additions[index], oldest = entries, lowest
    elseif not oldest or lowest < oldest then
      oldest = lowest
    end
    writes[w + 1], w = KEYS[c + LANE_KEYS], w + 2
    local refused, newest = refusals[slot] or 0, counter[NEWEST_START]
    if not counter[FULL] and not slots[slot + PREVIOUS_SLOT]
      and (slots[slot] == newest or not newest and (slots[slot + CHANGED] or refused > 0)) then
      -- The usual case, without a table: only the head changes.
      writes[w] = cmsgpack.pack(counter[USED], counter[SEQUENCE] + 1, counter[STORED], oldest, counter[STAMP],
        counter[REFUSALS] + refused, slots[slot], slots[slot + COUNTED], counter[NEWEST_DENIED] + refused)
      if counter[REST] > 0 then
        writes[w] = writes[w] .. string.sub(counter[VALUE], counter[REST] + 1)
      end
    else
      local full = full_counter(counter)
      full.used, full.sequence, full.oldest, full.stamp = counter[USED], counter[SEQUENCE] + 1, oldest, counter[STAMP]
      while slot do
        refused = refusals[slot] or 0
        if slots[slot + CHANGED] or refused > 0 then
          local all, returned = full.slots, returns[slot] or 0
          local s = find_or_insert_slot(all, slots[slot])
          all[s + SLOT_USED], all[s + SLOT_DENIED] = slots[slot + COUNTED], all[s + SLOT_DENIED] + refused
          all[s + SLOT_REFUNDED] = all[s + SLOT_REFUNDED] + returned
          full.denied, full.refunded = full.denied + refused, full.refunded + returned
        end
        slot = slots[slot + PREVIOUS_SLOT]
      end
      writes[w] = pack_counter(full)
    end
  end
end
if w > 0 then
  redis.call('MSET', unpack(writes))
end
for index, entries in pairs(additions) do
  redis.call('ZADD', KEYS[index], unpack(entries))
end
for i = 1, #new_records do
  redis.call('SET', KEYS[new_records[i] + LANE_KEYS], values[new_records[i]], 'PX', record_lifetime)
end
local packed = cmsgpack.pack(replies)
redis.call('SET', KEYS[1], string.format('%s|%.0f|', name, number) .. packed, 'PX', receipt_lifetime)
return packed
