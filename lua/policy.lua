#!lua flags=no-writes
--[[
Reads what Redis knows of an organization, with the text of its policy.

KEYS
  [1] the hash that has the organization
  [2] the shard's shared policies

ARGV
  [1] organization          its id

Returns {policy, meters, incarnation}: version, space and JSON, false if it is not known; every meter counted, separated
by spaces, false if there is none; policy version of the organization's last deletion, 0 if it was never deleted.

Invariants
  Nothing is written.
]]
local organization = read_organization(KEYS[1], ARGV[1])
if not organization then
  return {false, false, 0}
end
return {
  policy_text(KEYS[2], organization) or false, organization.meters ~= '' and organization.meters,
  organization.incarnation,
}
