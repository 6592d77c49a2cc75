#!lua
--[[
Takes the mirror of the API keys from one revision to another.

KEYS
  [1] the mirror: a hash of records by key id, with its revision under 'revision'

ARGV
  [1] the revision that the caller has seen; 0 = none
  [2] the revision that the records lead to
  [3] 'replace' to forget first what the mirror holds, 'add' to keep it
  then for each key: its id, its record as JSON

Returns 1; 0 where somebody else has taken the mirror on and nothing was written.

Invariants
  A mirror holds every change up to its revision, and a lost mirror has none: both are one key.
  Records are written in the order of their revisions, so that a revoked key does not come back.
]]
if (redis.call('HGET', KEYS[1], 'revision') or '0') ~= ARGV[1] then
  return 0
end
if ARGV[3] == 'replace' then
  redis.call('DEL', KEYS[1])
end
for i = 4, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', KEYS[1], 'revision', ARGV[2])
return 1
