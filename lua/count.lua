#!lua
--[[
Decides and counts a batch of operations, each with one or more charges and all of it or nothing.
The rule is that of `domain::decision::decide`. A batch that is sent again is executed at most once.

KEYS
  [1] the lane's receipt
  [2] the data set of the shard that holds the receipt
  then the counters
  then the idempotency records that operations name
  then the dirty indexes of the counters' shards
  then the fences: a hash by organization

ARGV
  [1] now                           ms since the epoch
  [2] lifetime of an idempotency record, ms
  [3] lifetime of a receipt, ms
  [4] number of the batch           a lane's batches are numbered upwards
  [5] '1' if this batch was sent before and was not answered, otherwise '0'
  [6] the batch                     a MessagePack array without inner arrays:
    number of counters, of idempotency records, of rules, of operations
    then for each rule:
      counter                       its place among the counters, from 1
      cap                           count beyond which this stamp refuses, or nil if it never does
      stamp                         'generation:version:limit:enforcement:end', see `counters::stamp`
      hour                          ms, start of the hour that the units belong to
      mark                          the lowest count that crosses a threshold of this stamp, or nil if none does
      percents                      that are told of when they are crossed, separated by spaces
    then for each operation:
      kind                          0 track, 1 consume, 2 check, 3 refund
      times                         how many equal ones this stands for; more than 1 only for a single
                                    charge without an idempotency record, of a track or a consume
      record                        place of its idempotency record among counters and records, or 0
      fingerprint of the payload    only where there is a record
      number of charges             of distinct counters
      then for each charge:
        rule                        its place among the rules, from 1
        amount                      units counted if granted, or given back; 0 where a meter is only required
        need                        units that must fit, at least the amount
    then for each counter:
      index                         place of its dirty index in KEYS

Returns a MessagePack array without inner arrays, with these for each operation:
  0, used…       granted; each counter's count now; behind them, for a refund, what was given back of each
  1, used…       denied; nothing counted
  2, record      this idempotency key was answered before: that answer
  3              this idempotency key was used for another payload
  4, i           charge i: the counter is missing, which means unknown
  5, i           charge i: the counter is of another generation
  6, i           charge i: its period is closed, or is over by a newer policy
  7, i           charge i: the counter would pass 2^53 - 1
  9, i           charge i: a change is on its way that decides which counters its organization has
  8, n, used     of several equal ones the first n were granted, the others not
A count is an integer, or 'count stamp' where the counter's own stamp decided instead of the caller's, or 'count stamp
first' where the first call was refused that this counter has refused at all.
Returns nil instead if the batch was sent before and nobody can say what became of it, or if a later one
was executed; nothing is counted then.

Invariants
  Everything is read and decided before the first write, because an error does not roll back.
  A number is executed once: its receipt is written in the same step, under the data set's name.
  Nothing is decided of an organization that has a fence.
  Nothing is created here but the receipt: a counter that is missing stays missing.
  A counter is in the dirty index whenever its `sequence` differs from what is `stored` of it.
  Only final answers (granted, denied) become idempotency records.
  A count never falls below 0: a refund gives back what is there, at most.
  `sequence` grows with every write. A newer policy version is never replaced by an older one.
  What a refund takes away, and a limit that ends, leave in the counter what a flush needs to tell what was crossed.
  Of each threshold the count that first crossed it under its limit is in the counter until it is told.
]]
local COUNT_MAX = 9007199254740991
local TRACK, CONSUME, CHECK, REFUND = 0, 1, 2, 3
local GRANTED, DENIED, REPLAYED, REUSED, MISSING, FROZEN, CLOSED, OVERFLOW, SOME, FENCED = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9

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

-- Tables and closures are made anew for every call, which is what a call of few operations costs most, so there are
-- few of them: the batch and the answers of Redis are worked on in place, and functions have the numbers of fields in
-- place of their names, each of which a closure would have to hold.
local batch = cmsgpack.unpack(ARGV[6])
local counter_count, record_count, rule_count, operation_count = batch[1], batch[2], batch[3], batch[4]
-- Of a rule r: `batch[6 * r - 1]` and the five behind. The hour is replaced by its place among `hours`.
local CAP, OWN_STAMP, RULE_HOUR, LOWEST_MARK, PERCENTS = 1, 2, 3, 4, 5
-- Of each counter what its value begins with, the count false where it is missing; the place of its newest hour of the
-- batch among `hours`; the oldest hour that changes; where the rest of its value begins; all that it says as a table, and
-- how much it had refused before its limit held, once that is needed.
local USED, SEQUENCE, STORED, OLDEST, STAMP, REFUSALS, START, START_USED, START_DENIED = 1, 2, 3, 4, 5, 6, 7, 8, 9
local HOUR, LOWEST, REST, ALL, DENIED_BEFORE = 10, 11, 12, 13, 14
-- A lane's first batch has no operation, and is there for its receipt.
local held = counter_count > 0 and redis.call('MGET', unpack(KEYS, 3, counter_count + record_count + 2))
local counters = {}

-- What a counter says, read where that is needed, which is rare.
local function all_of(c)
  local counter = counters[c]
  counter[ALL] = counter[ALL] or unpack_counter(held[c])
  return counter[ALL]
end

-- Of each hour of a counter: its start, the count in it, whether that changes, and the place of another hour of the
-- same counter, or false.
local HOUR_USED, TOUCHED, NEXT, HOUR_SIZE = 1, 2, 3, 4
local hours, hours_end = {}, 1
for r = 1, rule_count do
  local rule = 6 * r - 1
  local c, start = batch[rule], batch[rule + RULE_HOUR]
  local counter = counters[c]
  if not counter then
    local value = held[c]
    if value then
      local rest, used, sequence, stored, oldest, stamp, denied, newest, newest_used, newest_denied =
        cmsgpack.unpack_limit(value, HEAD)
      counter = {used, sequence, stored, oldest, stamp, denied, newest, newest_used, newest_denied, false, false, rest,
        false}
    else
      counter = {false}
    end
    counters[c] = counter
  end
  local hour = counter[HOUR]
  while hour and hours[hour] ~= start do
    hour = hours[hour + NEXT]
  end
  if not hour then
    hour, hours_end = hours_end, hours_end + HOUR_SIZE
    local hour_used = 0
    if counter[START] == start then
      hour_used = counter[START_USED]
    elseif counter[START] and counter[START] > start then
      local all = all_of(c).hours
      for h = 1, #all, 4 do
        if all[h] == start then
          hour_used = all[h + 1]
        end
      end
    end
    hours[hour], hours[hour + HOUR_USED], hours[hour + TOUCHED] = start, hour_used, false
    hours[hour + NEXT], counter[HOUR] = counter[HOUR] or false, hour
  end
  batch[rule + RULE_HOUR] = hour
end

-- The caller's stamp and the counter's differ. Returns why nothing can be decided, if so; whether the
-- counter takes the caller's stamp; and otherwise the cap of its own.
local function reconcile(stamp, own_stamp)
  local generation, version, limit, enforcement, ends = string.match(stamp, '^(%d+):(%d+):(%d*):(%a):(%d*)$')
  local own_generation, own_version, own_ends = string.match(own_stamp, '^(%d+):(%d+):%d*:%a:(%d*)$')
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

-- Nearly always there is no fence at all.
local fences = redis.call('EXISTS', KEYS[#KEYS]) == 1 and KEYS[#KEYS]

local function is_fenced(c)
  return redis.call('HEXISTS', fences, string.match(KEYS[c + 2], '}:u:([^:]+):')) == 1
end

-- By hour, what was refused and returned in it, where that happened.
local refusals, returns = {}, {}

-- Calls that a counter has refused by now.
local function refused_by(counter)
  local denied, at = counter[6], counter[10]
  while at do
    denied, at = denied + (refusals[at] or 0), hours[at + 3]
  end
  return denied
end

-- A counter is about to refuse; says whether for the first time. The first time under its limit crosses that.
local function note_refusal(c)
  local counter = counters[c]
  local denied, before = refused_by(counter), counter[14]
  if not before then
    -- Not all of the value, which would then be packed anew.
    local rest = counter[12]
    local told = counter[13] and counter[13].told or rest > 0 and cmsgpack.unpack(string.sub(held[c], rest + 1))[3] or ''
    before = tonumber(string.match(told, '%d+$') or 0)
    counter[14] = before
  end
  if denied == before then
    add_crossings(all_of(c), string.format('!=%.0f,', counter[1]))
  end
  return denied == 0
end

local function touch(counter, hour)
  local start, lowest = hours[hour], counter[11]
  if not lowest or start < lowest then
    counter[11] = start
  end
end

-- The counter takes the stamp of a rule.
local function adopt(rule)
  local c, own_stamp, hour = batch[rule], batch[rule + 2], batch[rule + 3]
  local counter = counters[c]
  local limit = string.match(counter[5], '^%d+:%d+:(%d*:%a):')
  local version, own_limit = string.match(own_stamp, '^%d+:(%d+):(%d*:%a):')
  if limit ~= own_limit then
    local all, used, denied = all_of(c), counter[1], refused_by(counter)
    local told, since = string.match(all.told, '^(%d+:%d):(%d+:%d+)$')
    local peak = math.max(all.peak, used)
    local past = string.format('%s:%s:%.0f:%.0f:%.0f:%s ', since, limit, peak, denied, used, all.crossed)
    all.told = string.format('%s:%s:%.0f', told, version, denied)
    all.past, all.peak, all.crossed = all.past .. past, 0, ''
    counter[14] = denied
  end
  counter[5] = own_stamp
  touch(counter, hour)
end

local b = 6 * rule_count + 5
-- How a charge stands, once that is known, in place of its need: decided by the caller's stamp, which the counter has,
-- or is to take; or by the counter's own. A refused one has `REFUSED` more, and `FIRST` besides if it is the first one of
-- its counter.
local SAME, ADOPTS, DIFFERS, REFUSED, FIRST = 0, 1, 2, 4, 8
local replies, n = {}, 0
local answered = {}
for _ = 1, operation_count do
  local kind, times, record, fingerprint, before = batch[b], batch[b + 1], batch[b + 2], nil, nil
  b = b + 3
  if record > 0 then
    fingerprint, before = batch[b], held[record]
    b = b + 1
  end
  -- A charge is its rule, its amount and its need.
  local charge_count, first = batch[b], b + 1
  local last = b + 3 * charge_count - 2
  b = last + 3
  if before then
    local separator = string.find(before, '|', 1, true)
    if string.sub(before, 1, separator - 1) == fingerprint then
      replies[n + 1], replies[n + 2] = REPLAYED, string.sub(before, separator + 1)
      n = n + 2
    else
      n = n + 1
      replies[n] = REUSED
    end
  else
    local reason, at_fault, denied, overflow, cap = nil, nil, false, nil, nil
    for at = first, last, 3 do
      local rule, standing = 6 * batch[at] - 1, SAME
      local counter = counters[batch[rule]]
      local used = counter[USED]
      cap = batch[rule + CAP]
      if fences and is_fenced(batch[rule]) then
        reason, at_fault = FENCED, at
        break
      end
      if not used then
        reason, at_fault = MISSING, at
        break
      end
      if counter[STAMP] ~= batch[rule + OWN_STAMP] then
        local adopts, own_cap
        reason, adopts, own_cap = reconcile(counter[STAMP], batch[rule + OWN_STAMP])
        if reason then
          at_fault = at
          break
        end
        if adopts then
          standing = ADOPTS
        else
          standing, cap = DIFFERS, own_cap
        end
      end
      if kind == TRACK or kind == REFUND then
        cap = nil
      end
      if times == 1 then
        if cap and used + batch[at + 2] > cap then
          standing, denied = standing + REFUSED, true
        elseif kind ~= REFUND and used + batch[at + 1] > COUNT_MAX then
          if kind == CHECK then
            standing, denied = standing + REFUSED, true
          else
            overflow = overflow or at
          end
        end
      end
      batch[at + 2] = standing
    end
    if overflow and not denied and not reason then
      reason, at_fault = OVERFLOW, overflow
    end

    if reason then
      replies[n + 1], replies[n + 2] = reason, (at_fault - first) / 3 + 1
      n = n + 2
    elseif times > 1 then
      local rule, amount, standing = 6 * batch[first] - 1, batch[first + 1], batch[first + 2]
      local counter, hour = counters[batch[rule]], batch[rule + RULE_HOUR]
      local granted = math.max(0, math.min(times, math.floor(((cap or COUNT_MAX) - counter[USED]) / amount)))
      if standing == ADOPTS and (granted > 0 or cap) then
        adopt(rule)
      end
      if granted > 0 then
        local units = granted * amount
        local before, after, mark = counter[USED], counter[USED] + units, batch[rule + LOWEST_MARK]
        if standing == DIFFERS or mark and mark <= after then
          local crossed = crossings(counter[STAMP], batch[rule + PERCENTS], before, after, amount)
          if crossed ~= '' then
            add_crossings(all_of(batch[rule]), crossed)
          end
        end
        counter[USED], hours[hour + HOUR_USED] = counter[USED] + units, hours[hour + HOUR_USED] + units
        hours[hour + TOUCHED] = true
        touch(counter, hour)
      end
      local refused_first = false
      if cap and granted < times then
        refused_first = note_refusal(batch[rule])
        refusals[hour] = (refusals[hour] or 0) + times - granted
        touch(counter, hour)
      end
      local told = counter[USED]
      if refused_first then
        told = string.format('%.0f %s first', told, counter[STAMP])
      elseif standing == DIFFERS then
        told = string.format('%.0f %s', told, counter[STAMP])
      end
      replies[n + 1], replies[n + 2], replies[n + 3] = SOME, granted, told
      n = n + 3
    else
      n = n + 1
      replies[n] = denied and DENIED or GRANTED
      local began = n
      for at = first, last, 3 do
        local rule, amount, standing = 6 * batch[at] - 1, batch[at + 1], batch[at + 2]
        local c, hour = batch[rule], batch[rule + RULE_HOUR]
        local counter = counters[c]
        local differs = standing % REFUSED == DIFFERS
        if kind ~= CHECK then
          if standing % REFUSED == ADOPTS then
            adopt(rule)
          end
          local units = 0
          if standing >= REFUSED then
            if note_refusal(c) then
              batch[at + 2] = standing + FIRST
            end
            refusals[hour] = (refusals[hour] or 0) + 1
            touch(counter, hour)
          elseif kind == REFUND then
            units = -math.min(amount, counter[USED])
            batch[at + 1] = -units
            if units < 0 then
              local all = all_of(c)
              all.peak = math.max(all.peak, counter[USED])
              returns[hour] = (returns[hour] or 0) - units
            end
          elseif not denied then
            units = amount
          end
          local before, after, mark = counter[USED], counter[USED] + units, batch[rule + LOWEST_MARK]
          if units > 0 and (differs or mark and mark <= after) then
            local crossed = crossings(counter[STAMP], batch[rule + PERCENTS], before, after, units)
            if crossed ~= '' then
              add_crossings(all_of(c), crossed)
            end
          end
          if units ~= 0 then
            counter[USED], hours[hour + HOUR_USED] = counter[USED] + units, hours[hour + HOUR_USED] + units
            hours[hour + TOUCHED] = true
            touch(counter, hour)
          end
        end
        n = n + 1
        if batch[at + 2] >= FIRST then
          replies[n] = string.format('%.0f %s first', counter[USED], counter[STAMP])
        else
          replies[n] = differs and string.format('%.0f %s', counter[USED], counter[STAMP]) or counter[USED]
        end
      end
      if kind == REFUND then
        for at = first, last, 3 do
          n = n + 1
          replies[n] = batch[at + 1]
        end
      end
      if record > 0 then
        -- The answer, as its idempotency record keeps it.
        local parts = {replies[began]}
        for at = first, last, 3 do
          local rule = 6 * batch[at] - 1
          local c = batch[rule]
          local stamp = batch[at + 2] % REFUSED == DIFFERS and counters[c][STAMP] or batch[rule + OWN_STAMP]
          local start, applied = string.match(KEYS[c + 2], '%d+$'), kind == REFUND and batch[at + 1] or 0
          local first_refused = batch[at + 2] >= FIRST and ' first' or ''
          parts[#parts + 1] = string.format('%s %.0f %s %.0f%s', start, counters[c][USED], stamp, applied, first_refused)
        end
        held[record] = fingerprint .. '|' .. table.concat(parts, '|')
        answered[#answered + 1] = record
      end
    end
  end
end

-- All is decided; from here on only writes.
local writes, w = {}, 0
-- By dirty index, the counters that enter it, each behind its score.
local entering = {}
for c = 1, counter_count do
  local counter = counters[c]
  local lowest, hour = counter[LOWEST], counter[HOUR]
  if lowest then
    local oldest = counter[OLDEST]
    if counter[SEQUENCE] == counter[STORED] then
      local index = batch[b + c - 1]
      local entries = entering[index] or {}
      entries[#entries + 1] = now
      entries[#entries + 1] = KEYS[c + 2]
      entering[index], oldest = entries, lowest
    elseif not oldest or lowest < oldest then
      oldest = lowest
    end
    writes[w + 1], w = KEYS[c + 2], w + 2
    local refused, start = refusals[hour] or 0, counter[START]
    if not counter[ALL] and not hours[hour + NEXT]
      and (hours[hour] == start or not start and (hours[hour + TOUCHED] or refused > 0)) then
      -- The usual case, without a table.
      writes[w] = cmsgpack.pack(counter[USED], counter[SEQUENCE] + 1, counter[STORED], oldest, counter[STAMP],
        counter[REFUSALS] + refused, hours[hour], hours[hour + HOUR_USED], counter[START_DENIED] + refused)
      if counter[REST] > 0 then
        writes[w] = writes[w] .. string.sub(held[c], counter[REST] + 1)
      end
    else
      local all = all_of(c)
      all.used, all.sequence, all.oldest, all.stamp = counter[USED], counter[SEQUENCE] + 1, oldest, counter[STAMP]
      while hour do
        refused = refusals[hour] or 0
        if hours[hour + TOUCHED] or refused > 0 then
          local of, returned = all.hours, returns[hour] or 0
          local h = place_of_hour(of, hours[hour])
          of[h + 1], of[h + 2], of[h + 3] = hours[hour + HOUR_USED], of[h + 2] + refused, of[h + 3] + returned
          all.denied, all.refunded = all.denied + refused, all.refunded + returned
        end
        hour = hours[hour + NEXT]
      end
      writes[w] = pack_counter(all)
    end
  end
end
if w > 0 then
  redis.call('MSET', unpack(writes))
end
for index, entries in pairs(entering) do
  redis.call('ZADD', KEYS[index], unpack(entries))
end
for i = 1, #answered do
  redis.call('SET', KEYS[answered[i] + 2], held[answered[i]], 'PX', record_lifetime)
end
local packed = cmsgpack.pack(replies)
redis.call('SET', KEYS[1], string.format('%s|%.0f|', name, number) .. packed, 'PX', receipt_lifetime)
return packed
