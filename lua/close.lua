#!lua
--[[
Finishes a reset that is committed in Postgres: closes the counter of the period that it ended and begins the
next one, in one step, so that nothing is counted in both and nothing in neither.

KEYS
  [1] the shard's generation
  [2] the hash that has the organization
  [3] the shard's dirty index
  [4] the counter that the reset closes
  [5] the counter that begins at the reset

ARGV
  [1] now                   ms since the epoch
  [2] generation            that the caller believes in
  [3] policy version        that the caller resolved, which knows the reset
  [4] meter
  [5] stamp                 of the counter that begins
  [6] start                 of the period that the reset closes, ms
  [7] the reset             ms: where that period ends and the next begins
  [8] margin                ms by which the data set must be older than a period: earliest event and clock skew
  [9] organization          its id

Returns one of
  'closed'                  it is done, now or before
  'generation'              the data set has another generation, or none
  'policy'                  Redis knows no policy of the organization, or a newer one
  'restore_closed'          nothing was done: Postgres must be asked for the counter to close first
  'restore'                 the one is closed; Postgres must be asked for the one that begins

Invariants
  A counter begins at a reset only in a data set in which the one before it is closed.
  What is closed stays so, with the limit and the enforcement that it had, under the version of the reset.
  Missing is unknown, never zero: only a data set older than a period can know that nothing is missing, and only if it
  has forgotten nothing of it.
  A counter that was missing is created closed, so that no late event finds it open.
  A counter that was closed here is dirty: its snapshot is what ends the period in Postgres.
]]
local now, generation, version, meter, stamp = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local start, reset, margin, id = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8]), ARGV[9]

local current = redis.call('HMGET', KEYS[1], 'number', 'born', 'forgotten')
if current[1] ~= generation then
  return 'generation'
end
local organization = read_organization(KEYS[2], id)
if not organization or organization.version > tonumber(version) then
  return 'policy'
end
local held, begun = redis.call('GET', KEYS[4]), redis.call('GET', KEYS[5])
local old = held and unpack_counter(held) or new_counter(stamp)
local held_generation, limit, enforcement = string.match(old.stamp, '^(%d+):%d+:(%d*):(%a)')
if held and held_generation ~= generation
  or not held and not knows_all(current[2], current[3], margin, start, reset) then
  return 'restore_closed'
end
local stands = begun and string.match(unpack_counter(begun).stamp, '^%d+') == generation

if not string.find(enforcement, '%u') or not held then
  local clean = old.sequence == old.stored
  old.sequence = old.sequence + 1
  old.stamp = table.concat({generation, version, limit, string.upper(enforcement), reset}, ':')
  redis.call('SET', KEYS[4], pack_counter(old))
  if clean then
    redis.call('ZADD', KEYS[3], now, KEYS[4])
  end
end
if stands then
  return 'closed'
end
if begun or not knows_all(current[2], current[3], margin, tonumber(reset), string.match(stamp, '%d*$')) then
  return 'restore'
end
if list_meter(organization, meter) then
  write_organization(KEYS[2], id, organization)
end
redis.call('SET', KEYS[5], pack_counter(new_counter(stamp)))
return 'closed'
