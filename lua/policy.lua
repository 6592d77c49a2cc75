#!lua flags=no-writes
--[[
Reads what is known of an organization, with its policy in full.

KEYS
  [1] the hash that has the organization
  [2] the shard's shared policies

ARGV
  [1] organization          its id

Returns {policy, meters, incarnation}: version, space and JSON, false where it is not known; every meter counted, separated
by spaces, false where nothing was; policy version of the organization's last deletion, 0 if it never was.

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
