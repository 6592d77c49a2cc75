#!lua flags=no-writes
--[[
Reads what is known of an organization, with its policy in full.

KEYS
  [1] the organization
  [2] the shard's shared policies

ARGV
  none

Returns {policy, meters, incarnation}, each false where it is not known: version, space and JSON; every meter counted,
separated by spaces; policy version of the organization's last deletion.

Invariants
  Nothing is written.
]]
local known = redis.call('HMGET', KEYS[1], 'p', 'm', 'i')
local version, name = string.match(known[1] or '', '^(%d+) (%x+)$')
if name then
  local text = redis.call('HGET', KEYS[2], name)
  known[1] = text and version .. ' ' .. text
end
return known
