#!lua flags=allow-oom
--[[
Removes the fence of an organization.

KEYS
  [1] the fences: a hash of policy versions by organization

ARGV
  [1] organization          its id
  [2] policy version        of the change that the fence was written for

Returns 1; 0 if there is no fence, or one of another change.

Invariants
  Nothing takes more memory than before.
  The fence of a later change stays: the outcome of that change is not known.
]]
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
return redis.call('HDEL', KEYS[1], ARGV[1])
