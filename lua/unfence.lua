#!lua flags=allow-oom
--[[
Takes the fence of an organization away.

KEYS
  [1] the fences: a hash of policy versions by organization

ARGV
  [1] organization          its id
  [2] policy version        that the fence stands for

Returns 1; 0 where there is none, or one for another change.

Invariants
  Nothing takes more room than before.
  The fence of a later change stays: what became of that is not known.
]]
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
return redis.call('HDEL', KEYS[1], ARGV[1])
