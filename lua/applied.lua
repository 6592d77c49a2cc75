#!lua
--[[
Advances the policy watermark of a shard.

KEYS
  [1] the shard's generation

ARGV
  [1] identity              of the server's data, as in `generation.lua`
  [2] policy version        that the watermark had when the caller read it, or ''
  [3] policy version        up to which every change was applied since

Returns 1, or 0 if the data set was replaced, or another instance has advanced the watermark.

Invariants
  A data set never has the watermark of another, because it is a field of the hash that names it.
]]
local data_set = redis.call('HMGET', KEYS[1], 'identity', 'applied')
if data_set[1] ~= ARGV[1] or (data_set[2] or '') ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], 'applied', ARGV[3])
return 1
