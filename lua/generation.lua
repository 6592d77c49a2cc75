#!lua
--[[
Names and numbers the data set of a shard, so that data loss or a rollback of Redis is detected.

KEYS
  [1] the shard's generation

ARGV
  [1] identity              of the server's data: run id of the process, '/', its replication id
  [2] a new random name     for the data set, should it need one
  [3] now                   Unix time, ms
  [4] trust                 '1' if a restarted process is trusted to have all acknowledged writes
  [5] the name that [6] was drawn for, or ''
  [6] a number from Postgres that no data set has had, or ''
  [7] when it was drawn     Unix time, ms, by the clock of Postgres
  [8] a number whose data set is to be replaced, because it lacks what was acknowledged, or ''

Returns {name, number}; the number is '' if the data set has none, and the caller draws one for this name.

Invariants
  A number is valid only for the data set that it was drawn for.
  A data set has one name and one number for life; another process, a process that was a replica in between, or an
  empty keyspace is another data set.
  [8] names a data set by its number, so callers that notice the same loss replace it once.
  The name before stays as `former`: what was counted under it and is in the receipts is in the counters as well.
  The policy watermark stays, because the policies do.
  `born` is never earlier than the creation of the data set, also if the clock of the instance that names it is behind.
]]
local values = redis.call('HMGET', KEYS[1], 'name', 'number', 'identity', 'applied')
local name, number, identity, applied = values[1], values[2], values[3], values[4]
local lacks = number and number == ARGV[8]
if name and not lacks and identity ~= ARGV[1] and ARGV[4] == '1' then
  redis.call('HSET', KEYS[1], 'identity', ARGV[1])
elseif not name or lacks or identity ~= ARGV[1] then
  name, number = ARGV[2], false
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'name', name, 'identity', ARGV[1], 'born', ARGV[3], 'former', values[1] or '')
  if applied then
    redis.call('HSET', KEYS[1], 'applied', applied)
  end
end
if not number and ARGV[5] == name then
  number = ARGV[6]
  local born = math.max(tonumber(redis.call('HGET', KEYS[1], 'born')), tonumber(ARGV[7]))
  redis.call('HSET', KEYS[1], 'number', number, 'born', string.format('%.0f', born))
end
return {name, number or ''}
