#!lua
--[[
Starts a missing counter at zero, if it is certain that nothing was ever counted in its period.

KEYS
  [1] the shard's generation
  [2] the hash that has the organization
  [3] the counter
  [4] the fences: a hash by organization

ARGV
  [1] now                   Unix time, ms
  [2] generation            that the caller expects
  [3] policy version        that the caller resolved
  [4] meter
  [5] stamp                 of the new counter
  [6] start                 of its period, ms
  [7] margin                ms by which the data set must be older than the period: earliest event and clock skew
  [8] maximum number of meters of an organization
  [9] organization          its id

Returns one of
  'opened'                  the counter is 0
  'exists'                  the counter is there already, in this generation
  'generation'              the data set has another generation, or none
  'policy'                  Redis has no policy of the organization, or a newer one, or the organization is fenced
  'restore'                 unknown: it must be restored from Postgres
  'too_many_meters'

Invariants
  Missing is unknown, never zero: only a data set older than the period can tell that a counter never existed, and only
  if no counter of that period was garbage-collected.
  No counter of a fenced organization is created, because its period may be about to be abandoned.
  The organization lists every meter counted in this data set.
]]
local now, generation, version, meter = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4]
local stamp, start, margin, meters_max, id = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]

local data_set = redis.call('HMGET', KEYS[1], 'number', 'born', 'forgotten')
if data_set[1] ~= generation then
  return 'generation'
end
local organization = read_organization(KEYS[2], id)
if not organization or organization.version > version or redis.call('HEXISTS', KEYS[4], id) == 1 then
  return 'policy'
end
local value = redis.call('GET', KEYS[3])
if value then
  return string.match(unpack_counter(value).stamp, '^%d+') == generation and 'exists' or 'restore'
end
local ends = string.match(stamp, '%d*$')
local running = now >= start and (ends == '' or now < tonumber(ends))
if not running or not never_existed(data_set[2], data_set[3], margin, start, ends) then
  return 'restore'
end

if add_meter(organization, meter) then
  local _, count = string.gsub(organization.meters, '%S+', '')
  if count > meters_max then
    return 'too_many_meters'
  end
  write_organization(KEYS[2], id, organization)
end
redis.call('SET', KEYS[3], pack_counter(new_counter(stamp)))
return 'opened'
