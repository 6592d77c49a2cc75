#!lua
--[[
Garbage-collects organizations without counters, so that lookups of unknown organizations do not fill Redis.

KEYS
  [1] the hash that has the organizations
  [2] the shard's shared policies

ARGV
  [1] Unix time, ms         organizations whose policy was written before, and that counted nothing since, are deleted

Returns how many were deleted.

Invariants
  An organization that counted anything stays: only its entry lists the meters counted in this data set.
  The reference to the policy's text is removed.
]]
local fields, deleted = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #fields, 2 do
  local organization = unpack_organization(fields[i + 1])
  if organization.since > 0 and organization.since < tonumber(ARGV[1]) then
    unshare_policy(KEYS[2], organization.policy)
    redis.call('HDEL', KEYS[1], fields[i])
    deleted = deleted + 1
  end
end
return deleted
