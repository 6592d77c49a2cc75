#!lua
--[[
Forgets organizations of which nothing was counted, so that asking for some that do not exist fills nothing.

KEYS
  [1] the hash that has the organizations
  [2] the shard's shared policies

ARGV
  [1] ms since the epoch    of the policies written before, those that nothing was counted under are forgotten

Returns how many were forgotten.

Invariants
  An organization of which something was counted stays: the list of its meters is known to nobody else.
  What a policy that is forgotten shared is given back.
]]
local fields, forgotten = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #fields, 2 do
  local organization = unpack_organization(fields[i + 1])
  if organization.since > 0 and organization.since < tonumber(ARGV[1]) then
    unshare_policy(KEYS[2], organization.policy)
    redis.call('HDEL', KEYS[1], fields[i])
    forgotten = forgotten + 1
  end
end
return forgotten
