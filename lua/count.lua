#!lua
--[[
Decides and counts a list of operations, each with one or more charges and all of it or nothing.
The rule is that of `domain::decision::decide`.

KEYS, for each operation in order:
  the shard's dirty index
  the idempotency record            only where the operation has a fingerprint
  a counter for each charge         distinct within an operation

ARGV
  [1] now                           ms since the epoch
  [2] lifetime of an idempotency record, ms
  [3] number of operations
  then for each operation:
    kind                            't' track, 'c' consume, 'k' check, 'r' refund
    number of charges
    fingerprint of the payload, or '' without an idempotency key
    then for each charge:
      amount                        units counted if granted, or given back; 0 where a meter is only required
      need                          units that must fit, at least the amount
      cap                           count beyond which this stamp refuses, or '' if it never does
      stamp                         'generation:version:limit:enforcement:end', see `counters::stamp`
      hour                          ms, start of the hour that the units belong to

Returns an array with one entry an operation:
  {0, used…}    granted; each counter's count now; behind them, for a refund, what was given back of each
  {1, used…}    denied; nothing counted
  {2, record}   this idempotency key was answered before: that answer
  {3}           this idempotency key was used for another payload
  {4, i}        charge i: the counter is missing, which means unknown
  {5, i}        charge i: the counter is of another generation
  {6, i}        charge i: its period is closed, or is over by a newer policy
  {7, i}        charge i: the counter would pass 2^53 - 1
A count is an integer, or 'count stamp' where the counter's own stamp decided instead of the caller's.

Invariants
  Everything is read and decided before the first write, because an error does not roll back.
  Nothing is created here: a counter that is missing stays missing.
  A counter is in the dirty index, and has no expiry, whenever its `s` differs from its `f`.
  Only final answers (granted, denied) become idempotency records.
  A count never falls below 0: a refund gives back what is there, at most.
  `s` grows with every write. A newer policy version is never replaced by an older one.
]]
local COUNT_MAX = 9007199254740991
local GRANTED, DENIED, REPLAYED, REUSED, MISSING, FROZEN, CLOSED, OVERFLOW = 0, 1, 2, 3, 4, 5, 6, 7

local now, record_lifetime, operation_count = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

-- What the arguments ask for. `counters` is keyed by Redis key, because operations may share one.
local operations, counters, keys, records = {}, {}, {}, {}
local k, a = 1, 4
for i = 1, operation_count do
  local operation = {kind = ARGV[a], fingerprint = ARGV[a + 2], charges = {}}
  local charge_count = tonumber(ARGV[a + 1])
  local dirty = KEYS[k]
  k, a = k + 1, a + 3
  if operation.fingerprint ~= '' then
    operation.record = KEYS[k]
    k = k + 1
  end
  for j = 1, charge_count do
    local key, hour = KEYS[k], ARGV[a + 4]
    local counter = counters[key]
    if not counter then
      counter = {dirty = dirty, hours = {}}
      counters[key] = counter
      keys[#keys + 1] = key
    end
    counter.hours[hour] = 0
    operation.charges[j] = {
      key = key, counter = counter, hour = hour,
      amount = tonumber(ARGV[a]), need = tonumber(ARGV[a + 1]), cap = tonumber(ARGV[a + 2]), stamp = ARGV[a + 3],
    }
    k, a = k + 1, a + 5
  end
  operations[i] = operation
end

-- What Redis holds.
for i = 1, #keys do
  local counter = counters[keys[i]]
  local fields, hours = {'u', 'd', 's', 'f', 'o', 'p', 'r'}, {}
  for hour in pairs(counter.hours) do
    hours[#hours + 1] = hour
    fields[#fields + 1] = 'h' .. hour
  end
  local values = redis.call('HMGET', keys[i], unpack(fields))
  if values[1] then
    counter.used = tonumber(values[1])
    counter.denied = tonumber(values[2]) or 0
    counter.sequence = tonumber(values[3])
    counter.stored = tonumber(values[4]) or 0
    counter.oldest = tonumber(values[5])
    counter.stamp = values[6]
    counter.refunded = tonumber(values[7]) or 0
    counter.touched, counter.refused, counter.given_back = {}, {}, {}
    for j = 1, #hours do
      counter.hours[hours[j]] = tonumber(values[7 + j]) or 0
    end
  end
end
for i = 1, operation_count do
  local record = operations[i].record
  if record then
    records[record] = redis.call('GET', record)
  end
end

local STAMP = '^(%d+):(%d+):(%d*):(%a):(%d*)$'

-- The caller's stamp and the counter's differ: sets what decides about this charge, or returns why it cannot.
local function reconcile(charge, kind)
  local generation, version, limit, enforcement, ends = string.match(charge.counter.stamp, STAMP)
  local own_generation, own_version, _, _, own_ends = string.match(charge.stamp, STAMP)
  if generation ~= own_generation then
    return FROZEN
  end
  if enforcement == 'c' then
    return CLOSED
  end
  local running = own_ends == '' or now < tonumber(own_ends)
  -- A period that is over keeps the limit that it ended with.
  if running and tonumber(version) < tonumber(own_version) then
    charge.adopts = true
    return nil
  end
  if running and ends ~= '' and now >= tonumber(ends) then
    return CLOSED
  end
  charge.differs = true
  charge.cap = nil
  if (kind == 'c' or kind == 'k') and enforcement == 'h' then
    charge.cap = tonumber(limit)
  end
  return nil
end

local function decide(operation)
  if operation.record and records[operation.record] then
    local record = records[operation.record]
    local separator = string.find(record, '|', 1, true)
    if string.sub(record, 1, separator - 1) ~= operation.fingerprint then
      return {REUSED}
    end
    return {REPLAYED, string.sub(record, separator + 1)}
  end

  local denied, overflow = false, nil
  for j, charge in ipairs(operation.charges) do
    local counter = charge.counter
    if not counter.used then
      return {MISSING, j}
    end
    if counter.stamp ~= charge.stamp then
      local reason = reconcile(charge, operation.kind)
      if reason then
        return {reason, j}
      end
    end
    if charge.cap and counter.used + charge.need > charge.cap then
      charge.denied = true
      denied = true
    elseif operation.kind ~= 'r' and counter.used + charge.amount > COUNT_MAX then
      overflow = overflow or j
    end
  end
  if overflow and not denied then
    return {OVERFLOW, overflow}
  end

  local reply = {denied and DENIED or GRANTED}
  for j, charge in ipairs(operation.charges) do
    local counter = charge.counter
    if operation.kind ~= 'k' then
      if charge.adopts then
        counter.stamp, counter.restamped, counter.changed = charge.stamp, true, true
      end
      if charge.denied then
        counter.denied = counter.denied + 1
        counter.refused[charge.hour] = (counter.refused[charge.hour] or 0) + 1
        counter.changed = true
      elseif operation.kind == 'r' then
        charge.applied = math.min(charge.amount, counter.used)
        if charge.applied > 0 then
          counter.used = counter.used - charge.applied
          counter.refunded = counter.refunded + charge.applied
          counter.hours[charge.hour] = counter.hours[charge.hour] - charge.applied
          counter.given_back[charge.hour] = (counter.given_back[charge.hour] or 0) + charge.applied
          counter.touched[charge.hour] = true
          counter.changed = true
        end
      elseif not denied and charge.amount > 0 then
        counter.used = counter.used + charge.amount
        counter.hours[charge.hour] = counter.hours[charge.hour] + charge.amount
        counter.touched[charge.hour] = true
        counter.changed = true
      end
      if counter.changed then
        local hour = tonumber(charge.hour)
        if not counter.lowest or hour < counter.lowest then
          counter.lowest = hour
        end
      end
    end
    if charge.differs then
      reply[j + 1] = string.format('%.0f %s', counter.used, counter.stamp)
    else
      reply[j + 1] = counter.used
    end
  end
  if operation.kind == 'r' then
    for _, charge in ipairs(operation.charges) do
      reply[#reply + 1] = charge.applied
    end
  end

  if operation.record then
    local parts = {reply[1]}
    for j, charge in ipairs(operation.charges) do
      local start = string.match(charge.key, '%d+$')
      local stamp = charge.differs and charge.counter.stamp or charge.stamp
      parts[j + 1] = string.format('%s %.0f %s %.0f', start, charge.counter.used, stamp, charge.applied or 0)
    end
    local answer = table.concat(parts, '|')
    operation.answer = operation.fingerprint .. '|' .. answer
    records[operation.record] = operation.answer
  end
  return reply
end

local replies = {}
for i = 1, operation_count do
  replies[i] = decide(operations[i])
end

-- All is decided; from here on only writes.
for i = 1, #keys do
  local key, counter = keys[i], counters[keys[i]]
  if counter.changed then
    local fields = {'u', counter.used, 's', counter.sequence + 1}
    local clean = counter.sequence == counter.stored
    if clean or not counter.oldest or counter.lowest < counter.oldest then
      fields[#fields + 1] = 'o'
      fields[#fields + 1] = counter.lowest
    end
    if counter.restamped then
      fields[#fields + 1] = 'p'
      fields[#fields + 1] = counter.stamp
    end
    for hour in pairs(counter.touched) do
      fields[#fields + 1] = 'h' .. hour
      fields[#fields + 1] = counter.hours[hour]
    end
    local refused = next(counter.refused)
    if refused then
      fields[#fields + 1] = 'd'
      fields[#fields + 1] = counter.denied
    end
    if next(counter.given_back) then
      fields[#fields + 1] = 'r'
      fields[#fields + 1] = counter.refunded
    end
    redis.call('HSET', key, unpack(fields))
    for hour, calls in pairs(counter.refused) do
      redis.call('HINCRBY', key, 'x' .. hour, calls)
    end
    for hour, units in pairs(counter.given_back) do
      redis.call('HINCRBY', key, 'r' .. hour, units)
    end
    if clean then
      redis.call('ZADD', counter.dirty, now, key)
      redis.call('PERSIST', key)
    end
  end
end
for i = 1, operation_count do
  local operation = operations[i]
  if operation.answer then
    redis.call('SET', operation.record, operation.answer, 'PX', record_lifetime)
  end
end
return replies
