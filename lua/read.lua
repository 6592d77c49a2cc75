#!lua flags=no-writes
--[[
Reads counters of one shard, as they are.

KEYS
  the counters

ARGV
  none

Returns a MessagePack array with an array for each counter: its fields and their values by turns, all of them text;
empty where there is no counter. One value, because a flush reads thousands, and a client parses each of many values
for longer than Redis needs to find it.

Invariants
  Nothing is written.
]]
local counters = {}
for i = 1, #KEYS do
  counters[i] = redis.call('HGETALL', KEYS[i])
end
return cmsgpack.pack(counters)
