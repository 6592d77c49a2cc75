#!lua
--[[
Advances the mirror of the API keys from one mark to another.

KEYS
  [1] the mirror: a hash of records by key id, and its mark in the field 'mark'

ARGV
  [1] the mark that the caller read; '' if none
  [2] the mark after these records
  [3] 'replace' to delete the mirror first, 'add' to keep it
  then for each key: its id, its record

Returns 1; 0 if another caller has advanced the mirror and nothing was written.

Invariants
  A mirror has every change up to its mark, and a lost mirror has no mark: both are one key.
  Records are written in the order of their revisions, so that a revoked key does not come back.
]]
if (redis.call('HGET', KEYS[1], 'mark') or '') ~= ARGV[1] then
  return 0
end
if ARGV[3] == 'replace' then
  redis.call('DEL', KEYS[1])
end
for i = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', KEYS[1], 'mark', ARGV[2])
return 1
