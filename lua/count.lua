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

-- What Redis holds.
local batch = cmsgpack.unpack(ARGV[6])
local counter_count, rule_count, operation_count = batch[1], batch[2], batch[3]
local counters, rules = {}, {}
local k, b = 3, 4
for i = 1, counter_count do
  counters[i] = {dirty = KEYS[k], key = KEYS[k + 1]}
  k = k + 2
end
for i = 1, rule_count do
  local counter, field = counters[batch[b]], 'h' .. batch[b + 3]
  local hour = counter.hours
  if not hour then
    hour = {start = batch[b + 3], field = field}
    counter.hours = hour
    local values = redis.call('HMGET', counter.key, 'u', 's', 'f', 'o', 'p', field)
    if values[1] then
      counter.used, counter.sequence, counter.stored = tonumber(values[1]), tonumber(values[2]), tonumber(values[3]) or 0
      counter.oldest, counter.stamp, hour.used = tonumber(values[4]), values[5], tonumber(values[6]) or 0
    end
  else
    while hour and hour.field ~= field do
      hour = hour.next
    end
    if not hour then
      hour = {start = batch[b + 3], field = field, next = counter.hours}
      counter.hours = hour
      hour.used = tonumber(redis.call('HGET', counter.key, field)) or 0
    end
  end
  rules[i] = {counter = counter, cap = batch[b + 1], stamp = batch[b + 2], hour = hour}
  b = b + 4
end
local records = {}
for i = k, #KEYS do
  records[i - k + 1] = redis.call('GET', KEYS[i])
end

local STAMP = '^(%d+):(%d+):(%d*):(%a):(%d*)$'

-- The caller's stamp and the counter's differ. Returns why nothing can be decided, if so; whether the
-- counter takes the caller's stamp; and otherwise the cap of its own.
local function reconcile(rule)
  local generation, version, limit, enforcement, ends = string.match(rule.counter.stamp, STAMP)
  local own_generation, own_version, _, _, own_ends = string.match(rule.stamp, STAMP)
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

local function told(counter, differs)
  return differs and string.format('%.0f %s', counter.used, counter.stamp) or counter.used
end

local function touch(counter, hour)
  counter.changed = true
  local start = tonumber(hour.start)
  if not counter.lowest or start < counter.lowest then
    counter.lowest = start
  end
end

-- Of each charge of the operation at hand: whether the caller's stamp is taken, or the counter's own
-- decides, whether it does not fit, and what was given back.
local adopts, differs, refused, applied = {}, {}, {}, {}

-- Decides the operation whose charges begin at `b`; returns why it could not be, and of which charge.
local function decide(kind, times, charge_count)
  local denied, overflow = false, nil
  for j = 1, charge_count do
    local at = b + 3 * (j - 1)
    local rule = rules[batch[at]]
    local counter, cap = rule.counter, rule.cap
    adopts[j], differs[j], refused[j], applied[j] = false, false, false, 0
    if not counter.used then
      return MISSING, j
    end
    if counter.stamp ~= rule.stamp then
      local reason
      reason, adopts[j], cap = reconcile(rule)
      if reason then
        return reason, j
      end
      if adopts[j] then
        cap = rule.cap
      else
        differs[j] = true
      end
    end
    if kind == TRACK or kind == REFUND then
      cap = nil
    end
    if times > 1 then
      local amount, hour = batch[at + 1], rule.hour
      local granted = math.max(0, math.min(times, math.floor(((cap or COUNT_MAX) - counter.used) / amount)))
      if adopts[j] and (granted > 0 or cap) then
        counter.stamp, counter.restamped = rule.stamp, true
        touch(counter, hour)
      end
      if granted > 0 then
        counter.used, hour.used, hour.touched = counter.used + granted * amount, hour.used + granted * amount, true
        touch(counter, hour)
      end
      if cap and granted < times then
        hour.denied = (hour.denied or 0) + times - granted
        touch(counter, hour)
      end
      reply(SOME)
      reply(granted)
      reply(told(counter, differs[j]))
      return nil
    end
    if cap and counter.used + batch[at + 2] > cap then
      refused[j], denied = true, true
    elseif kind ~= REFUND and counter.used + batch[at + 1] > COUNT_MAX then
      overflow = overflow or j
    end
  end
  if overflow and not denied then
    return OVERFLOW, overflow
  end

  reply(denied and DENIED or GRANTED)
  for j = 1, charge_count do
    local at = b + 3 * (j - 1)
    local rule, amount = rules[batch[at]], batch[at + 1]
    local counter, hour = rule.counter, rule.hour
    if kind ~= CHECK then
      if adopts[j] then
        counter.stamp, counter.restamped = rule.stamp, true
        touch(counter, hour)
      end
      if refused[j] then
        hour.denied = (hour.denied or 0) + 1
        touch(counter, hour)
      elseif kind == REFUND then
        applied[j] = math.min(amount, counter.used)
        if applied[j] > 0 then
          counter.used, hour.used, hour.touched = counter.used - applied[j], hour.used - applied[j], true
          hour.given_back = (hour.given_back or 0) + applied[j]
          touch(counter, hour)
        end
      elseif not denied and amount > 0 then
        counter.used, hour.used, hour.touched = counter.used + amount, hour.used + amount, true
        touch(counter, hour)
      end
    end
    reply(told(counter, differs[j]))
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
    local rule = rules[batch[b + 3 * (j - 1)]]
    local start = string.match(rule.counter.key, '%d+$')
    local stamp = differs[j] and rule.counter.stamp or rule.stamp
    parts[j + 1] = string.format('%s %.0f %s %.0f', start, rule.counter.used, stamp, applied[j])
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
for i = 1, counter_count do
  local counter = counters[i]
  if counter.changed then
    local key, hour = counter.key, counter.hours
    local clean = counter.sequence == counter.stored
    local lowers = clean or not counter.oldest or counter.lowest < counter.oldest
    if lowers or counter.restamped or hour.next or not hour.touched then
      local fields = {'u', counter.used, 's', counter.sequence + 1}
      if lowers then
        fields[#fields + 1] = 'o'
        fields[#fields + 1] = counter.lowest
      end
      if counter.restamped then
        fields[#fields + 1] = 'p'
        fields[#fields + 1] = counter.stamp
      end
      while hour do
        if hour.touched then
          fields[#fields + 1] = hour.field
          fields[#fields + 1] = hour.used
        end
        hour = hour.next
      end
      redis.call('HSET', key, unpack(fields))
    else
      -- The usual case, without a table.
      redis.call('HSET', key, 'u', counter.used, 's', counter.sequence + 1, hour.field, hour.used)
    end
    hour = counter.hours
    while hour do
      if hour.denied then
        redis.call('HINCRBY', key, 'd', hour.denied)
        redis.call('HINCRBY', key, 'x' .. hour.start, hour.denied)
      end
      if hour.given_back then
        redis.call('HINCRBY', key, 'r', hour.given_back)
        redis.call('HINCRBY', key, 'r' .. hour.start, hour.given_back)
      end
      hour = hour.next
    end
    if clean then
      redis.call('ZADD', counter.dirty, now, key)
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
