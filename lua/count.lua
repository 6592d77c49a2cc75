#!lua
--[[
Decides and counts a batch of operations, each with one or more charges and all of it or nothing.
The rule is that of `domain::decision::decide`. A batch that is sent again is executed at most once.

KEYS
  [1] the lane's receipt
  [2] the data set of the shard that holds the receipt
  then for each counter:
    the shard's dirty index
    the counter
  then the idempotency records that operations name

ARGV
  [1] now                           ms since the epoch
  [2] lifetime of an idempotency record, ms
  [3] lifetime of a receipt, ms
  [4] number of the batch           a lane's batches are numbered upwards
  [5] '1' if this batch was sent before and was not answered, otherwise '0'
  [6] the batch                     a MessagePack array without inner arrays:
    number of counters, number of rules, number of operations
    then for each rule:
      counter                       its place among the counters, from 1
      cap                           count beyond which this stamp refuses, or nil if it never does
      stamp                         'generation:version:limit:enforcement:end', see `counters::stamp`
      hour                          ms as text, start of the hour that the units belong to
    then for each operation:
      kind                          0 track, 1 consume, 2 check, 3 refund
      times                         how many equal ones this stands for; more than 1 only for a single
                                    charge without an idempotency record, of a track or a consume
      record                        place of its idempotency record among those in KEYS, from 1; or 0
      fingerprint of the payload    only where there is a record
      number of charges             of distinct counters
      then for each charge:
        rule                        its place among the rules, from 1
        amount                      units counted if granted, or given back; 0 where a meter is only required
        need                        units that must fit, at least the amount

Returns a MessagePack array without inner arrays, with these for each operation:
  0, used…       granted; each counter's count now; behind them, for a refund, what was given back of each
  1, used…       denied; nothing counted
  2, record      this idempotency key was answered before: that answer
  3              this idempotency key was used for another payload
  4, i           charge i: the counter is missing, which means unknown
  5, i           charge i: the counter is of another generation
  6, i           charge i: its period is closed, or is over by a newer policy
  7, i           charge i: the counter would pass 2^53 - 1
  8, n, used     of several equal ones the first n were granted, the others not
A count is an integer, or 'count stamp' where the counter's own stamp decided instead of the caller's.
Returns nil instead if the batch was sent before and nobody can say what became of it, or if a later one
was executed; nothing is counted then.

Invariants
  Everything is read and decided before the first write, because an error does not roll back.
  A number is executed once: its receipt is written in the same step, under the data set's name.
  Nothing is created here but the receipt: a counter that is missing stays missing.
  A counter is in the dirty index, and has no expiry, whenever its `s` differs from its `f`.
  Only final answers (granted, denied) become idempotency records.
  A count never falls below 0: a refund gives back what is there, at most.
  `s` grows with every write. A newer policy version is never replaced by an older one.
  What a refund takes away, and a limit that ends, leave in the counter what a flush needs to tell what was crossed.
]]
local COUNT_MAX = 9007199254740991
local TRACK, CONSUME, CHECK, REFUND = 0, 1, 2, 3
local GRANTED, DENIED, REPLAYED, REUSED, MISSING, FROZEN, CLOSED, OVERFLOW, SOME = 0, 1, 2, 3, 4, 5, 6, 7, 8

local now, record_lifetime, receipt_lifetime = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local number, sent_before = tonumber(ARGV[4]), ARGV[5] == '1'

-- A receipt is 'name of the data set|number|replies'.
local name = redis.call('HGET', KEYS[2], 'name') or ''
local head = redis.call('GETRANGE', KEYS[1], 0, 63)
local last_name, last_number = string.match(head, '^([^|]*)|(%d+)|')
local known = last_name == name and name ~= ''
if known and tonumber(last_number) >= number then
  if tonumber(last_number) > number then
    return nil
  end
  return string.sub(redis.call('GET', KEYS[1]), #last_name + #last_number + 3)
end
if sent_before and not known then
  return nil
end

-- What Redis holds. Parallel lists and not a table for each, because making tables is most of what a count costs.
local batch = cmsgpack.unpack(ARGV[6])
local counter_count, rule_count, operation_count = batch[1], batch[2], batch[3]
-- By counter. `used` is false where it is missing; `sequence`, `stored` and `oldest` are as Redis prints them.
local used, sequence, stored, oldest, stamps, first_hour = {}, {}, {}, {}, {}, {}
local changed, restamped, lowest = {}, {}, {}
local memory_told, memory_past, memory_peak, memory_denied = {}, {}, {}, {}
-- By hour of a counter; `next_hour` is another hour of the same counter.
local hour_start, hour_used, hour_touched, hour_denied, hour_returned, next_hour = {}, {}, {}, {}, {}, {}
local hour_count = 0
-- By rule.
local rule_counter, rule_cap, rule_stamp, rule_hour = {}, {}, {}, {}
local b = 4
for r = 1, rule_count do
  local c, start = batch[b], batch[b + 3]
  local hour, newest = first_hour[c], first_hour[c]
  while hour and hour_start[hour] ~= start do
    hour = next_hour[hour]
  end
  if not hour then
    hour_count = hour_count + 1
    hour = hour_count
    hour_start[hour], next_hour[hour], first_hour[c] = start, newest or false, hour
    if newest then
      hour_used[hour] = tonumber(redis.call('HGET', KEYS[2 * c + 2], 'h' .. start)) or 0
    else
      local values = redis.call('HMGET', KEYS[2 * c + 2], 'u', 's', 'f', 'o', 'p', 'h' .. start)
      used[c], sequence[c], stored[c] = tonumber(values[1]) or false, values[2], values[3] or '0'
      oldest[c], stamps[c], hour_used[hour] = values[4], values[5], tonumber(values[6]) or 0
    end
  end
  rule_counter[r], rule_cap[r], rule_stamp[r], rule_hour[r] = c, batch[b + 1], batch[b + 2], hour
  b = b + 4
end
local k = 2 * counter_count + 3
local records = {}
for i = k, #KEYS do
  records[i - k + 1] = redis.call('GET', KEYS[i])
end

local STAMP = '^(%d+):(%d+):(%d*):(%a):(%d*)$'

-- The caller's stamp and the counter's differ. Returns why nothing can be decided, if so; whether the
-- counter takes the caller's stamp; and otherwise the cap of its own.
local function reconcile(r)
  local generation, version, limit, enforcement, ends = string.match(stamps[rule_counter[r]], STAMP)
  local own_generation, own_version, _, _, own_ends = string.match(rule_stamp[r], STAMP)
  if generation ~= own_generation then
    return FROZEN
  end
  if string.find(enforcement, '%u') then
    return CLOSED
  end
  local running = own_ends == '' or now < tonumber(own_ends)
  -- A period that is over keeps the limit that it ended with.
  if running and tonumber(version) < tonumber(own_version) then
    return nil, true
  end
  if running and ends ~= '' and now >= tonumber(ends) then
    return CLOSED
  end
  return nil, false, enforcement == 'h' and tonumber(limit) or nil
end

local replies, n = {}, 0

local function reply(value)
  n = n + 1
  replies[n] = value
end

local function told(c, differs)
  return differs and string.format('%.0f %s', used[c], stamps[c]) or used[c]
end

local function touch(c, hour)
  local start = hour_start[hour]
  if not changed[c] then
    changed[c], lowest[c] = true, start
  elseif start ~= lowest[c] and tonumber(start) < tonumber(lowest[c]) then
    lowest[c] = start
  end
end

local function add(c, hour, units)
  used[c], hour_used[hour], hour_touched[hour] = used[c] + units, hour_used[hour] + units, true
  touch(c, hour)
end

-- What a counter remembers of its thresholds, read where it is about to change, which is rare.
local function recall(c)
  if not memory_told[c] then
    local values = redis.call('HMGET', KEYS[2 * c + 2], 't', 'v', 'm', 'd')
    memory_told[c], memory_past[c] = values[1] or '0:0:0:0', values[2] or ''
    memory_peak[c], memory_denied[c] = tonumber(values[3]) or 0, tonumber(values[4]) or 0
  end
end

local function relimit(c, limit, version)
  recall(c)
  local denied, hour = memory_denied[c], first_hour[c]
  while hour do
    denied, hour = denied + (hour_denied[hour] or 0), next_hour[hour]
  end
  local told, since = string.match(memory_told[c], '^(%d+:%d):(%d+:%d+)$')
  local past = string.format('%s:%s:%.0f:%.0f:%.0f ', since, limit, math.max(memory_peak[c], used[c]), denied, used[c])
  memory_told[c], memory_past[c] = string.format('%s:%s:%.0f', told, version, denied), memory_past[c] .. past
  memory_peak[c] = 0
end

local function adopt(r)
  local c = rule_counter[r]
  local limit = string.match(stamps[c], '^%d+:%d+:(%d*:%a):')
  local version, own_limit = string.match(rule_stamp[r], '^%d+:(%d+):(%d*:%a):')
  if limit ~= own_limit then
    relimit(c, limit, version)
  end
  stamps[c], restamped[c] = rule_stamp[r], true
  touch(c, rule_hour[r])
end

local function refuse(c, hour, calls)
  hour_denied[hour] = (hour_denied[hour] or 0) + calls
  touch(c, hour)
end

-- Of each charge of the operation at hand: whether the caller's stamp is taken, or the counter's own
-- decides, whether it does not fit, and what was given back.
local adopts, differs, refused, applied = {}, {}, {}, {}

-- Decides the operation whose charges begin at `b`; returns why it could not be, and of which charge.
local function decide(kind, times, charge_count)
  local denied, overflow = false, nil
  for j = 1, charge_count do
    local at = b + 3 * (j - 1)
    local r = batch[at]
    local c, cap = rule_counter[r], rule_cap[r]
    adopts[j], differs[j], refused[j], applied[j] = false, false, false, 0
    if not used[c] then
      return MISSING, j
    end
    if stamps[c] ~= rule_stamp[r] then
      local reason, own_cap
      reason, adopts[j], own_cap = reconcile(r)
      if reason then
        return reason, j
      end
      if not adopts[j] then
        differs[j], cap = true, own_cap
      end
    end
    if kind == TRACK or kind == REFUND then
      cap = nil
    end
    if times > 1 then
      local amount, hour = batch[at + 1], rule_hour[r]
      local granted = math.max(0, math.min(times, math.floor(((cap or COUNT_MAX) - used[c]) / amount)))
      if adopts[j] and (granted > 0 or cap) then
        adopt(r)
      end
      if granted > 0 then
        add(c, hour, granted * amount)
      end
      if cap and granted < times then
        refuse(c, hour, times - granted)
      end
      reply(SOME)
      reply(granted)
      reply(told(c, differs[j]))
      return nil
    end
    if cap and used[c] + batch[at + 2] > cap then
      refused[j], denied = true, true
    elseif kind ~= REFUND and used[c] + batch[at + 1] > COUNT_MAX then
      overflow = overflow or j
    end
  end
  if overflow and not denied then
    return OVERFLOW, overflow
  end

  reply(denied and DENIED or GRANTED)
  for j = 1, charge_count do
    local at = b + 3 * (j - 1)
    local r, amount = batch[at], batch[at + 1]
    local c, hour = rule_counter[r], rule_hour[r]
    if kind ~= CHECK then
      if adopts[j] then
        adopt(r)
      end
      if refused[j] then
        refuse(c, hour, 1)
      elseif kind == REFUND then
        applied[j] = math.min(amount, used[c])
        if applied[j] > 0 then
          recall(c)
          memory_peak[c] = math.max(memory_peak[c], used[c])
          hour_returned[hour] = (hour_returned[hour] or 0) + applied[j]
          add(c, hour, -applied[j])
        end
      elseif not denied and amount > 0 then
        add(c, hour, amount)
      end
    end
    reply(told(c, differs[j]))
  end
  if kind == REFUND then
    for j = 1, charge_count do
      reply(applied[j])
    end
  end
  return nil
end

-- The answer of the operation at hand, as its idempotency record keeps it.
local function recorded(status, charge_count)
  local parts = {status}
  for j = 1, charge_count do
    local r = batch[b + 3 * (j - 1)]
    local c = rule_counter[r]
    local start = string.match(KEYS[2 * c + 2], '%d+$')
    local stamp = differs[j] and stamps[c] or rule_stamp[r]
    parts[j + 1] = string.format('%s %.0f %s %.0f', start, used[c], stamp, applied[j])
  end
  return table.concat(parts, '|')
end

local answered = {}
for _ = 1, operation_count do
  local kind, times, record, fingerprint, before = batch[b], batch[b + 1], batch[b + 2], nil, nil
  b = b + 3
  if record > 0 then
    fingerprint, before = batch[b], records[record]
    b = b + 1
  end
  local charge_count = batch[b]
  b = b + 1
  if before then
    local separator = string.find(before, '|', 1, true)
    if string.sub(before, 1, separator - 1) == fingerprint then
      reply(REPLAYED)
      reply(string.sub(before, separator + 1))
    else
      reply(REUSED)
    end
  else
    local began = n
    local reason, charge = decide(kind, times, charge_count)
    if reason then
      reply(reason)
      reply(charge)
    elseif record > 0 then
      records[record] = fingerprint .. '|' .. recorded(replies[began + 1], charge_count)
      answered[#answered + 1] = record
    end
  end
  b = b + 3 * charge_count
end

-- All is decided; from here on only writes.
for c = 1, counter_count do
  if changed[c] then
    local key, hour = KEYS[2 * c + 2], first_hour[c]
    local clean = sequence[c] == stored[c]
    local lowers = lowest[c] ~= oldest[c]
      and (clean or not oldest[c] or tonumber(lowest[c]) < tonumber(oldest[c]))
    if lowers or restamped[c] or memory_told[c] or next_hour[hour] or not hour_touched[hour] then
      local fields = {'u', used[c], 's', sequence[c] + 1}
      if lowers then
        fields[#fields + 1] = 'o'
        fields[#fields + 1] = lowest[c]
      end
      if restamped[c] then
        fields[#fields + 1] = 'p'
        fields[#fields + 1] = stamps[c]
      end
      if memory_told[c] then
        fields[#fields + 1] = 'm'
        fields[#fields + 1] = memory_peak[c]
        if memory_past[c] ~= '' then
          fields[#fields + 1] = 't'
          fields[#fields + 1] = memory_told[c]
          fields[#fields + 1] = 'v'
          fields[#fields + 1] = memory_past[c]
        end
      end
      while hour do
        if hour_touched[hour] then
          fields[#fields + 1] = 'h' .. hour_start[hour]
          fields[#fields + 1] = hour_used[hour]
        end
        hour = next_hour[hour]
      end
      redis.call('HSET', key, unpack(fields))
    else
      -- The usual case, without a table.
      redis.call('HSET', key, 'u', used[c], 's', sequence[c] + 1, 'h' .. hour_start[hour], hour_used[hour])
    end
    hour = first_hour[c]
    while hour do
      if hour_denied[hour] then
        redis.call('HINCRBY', key, 'd', hour_denied[hour])
        redis.call('HINCRBY', key, 'x' .. hour_start[hour], hour_denied[hour])
      end
      if hour_returned[hour] then
        redis.call('HINCRBY', key, 'r', hour_returned[hour])
        redis.call('HINCRBY', key, 'r' .. hour_start[hour], hour_returned[hour])
      end
      hour = next_hour[hour]
    end
    if clean then
      redis.call('ZADD', KEYS[2 * c + 1], now, key)
      redis.call('PERSIST', key)
    end
  end
end
for i = 1, #answered do
  redis.call('SET', KEYS[k + answered[i] - 1], records[answered[i]], 'PX', record_lifetime)
end
local packed = cmsgpack.pack(replies)
redis.call('SET', KEYS[1], string.format('%s|%.0f|', name, number) .. packed, 'PX', receipt_lifetime)
return packed
