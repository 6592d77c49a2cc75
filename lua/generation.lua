#!lua
--[[
Names and numbers the data set of a shard, so that data loss or a rollback of Redis is detected.

KEYS
  [1] the shard's generation

ARGV
  [1] run id                of the server process that the caller is connected to
  [2] a new random name     for the data set, should it need one
  [3] now                   Unix time, ms
  [4] trust                 '1' if a restarted process is trusted to have all acknowledged writes
  [5] the name that [6] was drawn for, or ''
  [6] a number from Postgres that no data set has had, or ''
  [7] when it was drawn     Unix time, ms, by the clock of Postgres

Returns {name, number}; the number is '' if the data set has none, and the caller draws one for this name.

Invariants
  A number is valid only for the data set that it was drawn for.
  A data set has one name and one number for life; another process or an empty keyspace is another data set.
  `born` is never earlier than the creation of the data set, also if the clock of the instance that names it is behind.
]]
local values = redis.call('HMGET', KEYS[1], 'name', 'number', 'run')
local name, number, run = values[1], values[2], values[3]
if name and run ~= ARGV[1] and ARGV[4] == '1' then
  redis.call('HSET', KEYS[1], 'run', ARGV[1])
elseif not name or run ~= ARGV[1] then
  name, number = ARGV[2], false
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'name', name, 'run', ARGV[1], 'born', ARGV[3])
end
if not number and ARGV[5] == name then
  number = ARGV[6]
  local born = math.max(tonumber(redis.call('HGET', KEYS[1], 'born')), tonumber(ARGV[7]))
  redis.call('HSET', KEYS[1], 'number', number, 'born', string.format('%.0f', born))
end
return {name, number or ''}
