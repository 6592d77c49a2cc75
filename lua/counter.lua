--[[
What the value of a counter is; put in front of each script that reads or writes counters.

A value is a sequence of MessagePack items; ARCHITECTURE.md says what each of them means.
  used, sequence, stored, oldest, stamp, denied
  start, used and denied of its newest hour; nil, 0, 0 where it has none
  where there is anything else, an array of all of it:
    refunded, peak, told, past, adjusted; 0 or '' where there is nothing
    refunded in the newest hour
    then for each hour before that, from the newest to the oldest:
      gap                   seconds between its start and that of the one after it; below 0 where the
                            last two follow
      used
      denied, refunded      only where one of them is not 0
    what it has crossed, in a text, only where that is not stored yet: see `domain::threshold::Crossed`

The first nine are all that most calls need, and are read and written without a table.
]]
local HEAD = 9

-- All that a value says, as a table. `hours` has four numbers for each hour, start, used, denied and refunded, from the
-- newest to the oldest.
local function unpack_counter(value)
  local at, used, sequence, stored, oldest, stamp, denied, start, hour_used, hour_denied =
    cmsgpack.unpack_limit(value, HEAD)
  local more = at > 0 and cmsgpack.unpack(string.sub(value, at + 1)) or {0, 0, '', '', '', 0}
  local hours, h = {}, 4
  if start then
    hours[1], hours[2], hours[3], hours[4] = start, hour_used, hour_denied, more[6]
  end
  local i = 7
  while type(more[i]) == 'number' do
    start = start - math.abs(more[i]) * 1000
    hours[h + 1], hours[h + 2], hours[h + 3], hours[h + 4] = start, more[i + 1], 0, 0
    if more[i] < 0 then
      hours[h + 3], hours[h + 4] = more[i + 2], more[i + 3]
      i = i + 2
    end
    h, i = h + 4, i + 2
  end
  return {
    used = used, sequence = sequence, stored = stored, oldest = oldest, stamp = stamp, denied = denied,
    refunded = more[1], peak = more[2], told = more[3] ~= '' and more[3] or '0:0:0:0', past = more[4],
    adjusted = more[5], hours = hours, crossed = more[i] or '',
  }
end

-- The inverse.
local function pack_counter(counter)
  local hours = counter.hours
  local head = cmsgpack.pack(counter.used, counter.sequence, counter.stored, counter.oldest, counter.stamp,
    counter.denied, hours[1], hours[2] or 0, hours[3] or 0)
  local told = counter.told ~= '0:0:0:0' and counter.told or ''
  if not hours[5] and told == '' and counter.past == '' and counter.adjusted == ''
    and counter.refunded == 0 and counter.peak == 0 and (hours[4] or 0) == 0 and counter.crossed == '' then
    return head
  end
  local more = {counter.refunded, counter.peak, told, counter.past, counter.adjusted, hours[4] or 0}
  local i = 7
  for h = 5, #hours, 4 do
    more[i], more[i + 1] = (hours[h - 4] - hours[h]) / 1000, hours[h + 1]
    if hours[h + 2] ~= 0 or hours[h + 3] ~= 0 then
      more[i], more[i + 2], more[i + 3] = -more[i], hours[h + 2], hours[h + 3]
      i = i + 2
    end
    i = i + 2
  end
  if counter.crossed ~= '' then
    more[i] = counter.crossed
  end
  return head .. cmsgpack.pack(more)
end

-- A counter in which nothing was counted.
local function new_counter(stamp)
  return {
    used = 0, sequence = 0, stored = 0, stamp = stamp, denied = 0,
    refunded = 0, peak = 0, told = '0:0:0:0', past = '', adjusted = '', hours = {}, crossed = '',
  }
end

-- Which percentages of the limit of a stamp, and whether the limit itself, are crossed between two counts that lie so many
-- steps apart, each with the first count of a step that has crossed it.
local function crossings(stamp, percents, before, after, step)
  local limit = tonumber(string.match(stamp, '^%d+:%d+:(%d+)'))
  local crossed = ''
  local function look(threshold, mark)
    if before < mark and mark <= after then
      local count = before + math.ceil((mark - before) / step) * step
      crossed = string.format('%s%s=%.0f,', crossed, threshold, count)
    end
  end
  if limit and limit > 0 then
    -- In two parts, because their product may pass 2^53.
    local hundredth, rest = math.floor(limit / 100), limit % 100
    for percent in string.gmatch(percents, '%d+') do
      look(percent, hundredth * percent + math.ceil(rest * percent / 100))
    end
  end
  if limit then
    look('!', limit + 1)
  end
  return crossed
end

-- Adds to what a counter has crossed what it has not crossed before.
local function add_crossings(counter, crossed)
  for threshold, count in string.gmatch(crossed, '([^=,]+)=(%d+)') do
    if not string.find(',' .. counter.crossed, ',' .. threshold .. '=', 1, true) then
      counter.crossed = counter.crossed .. threshold .. '=' .. count .. ','
    end
  end
end

-- The place of an hour among those of a counter, where it is put if it is not there.
local function place_of_hour(hours, start)
  local h = 1
  while hours[h] and hours[h] > start do
    h = h + 4
  end
  if hours[h] ~= start then
    for i = #hours, h, -1 do
      hours[i + 4] = hours[i]
    end
    hours[h], hours[h + 1], hours[h + 2], hours[h + 3] = start, 0, 0, 0
  end
  return h
end
