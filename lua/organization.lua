--[[
What Redis knows of an organization. Joined to every script that reads or writes it.

The organizations of a shard are fields, by id, of 64 hashes: a key of its own would take more memory than its value.
Redis stores a hash compactly (listpack) while it has few fields and short values.
A value is a sequence of MessagePack items:
  version                   policy version; ahead of own_version while the counters of a deleted organization are erased
  own_version               version of the policy itself
  policy                    name of its JSON among the shard's shared policies; or the JSON itself, where the name is
                            taken by another text
  meters                    every meter counted in this data set, with a space before and after each; '' if none
  incarnation               policy version of the organization's last deletion, 0 if it was never deleted
  since                     Unix time in ms when the policy was written, if nothing was counted since; otherwise 0

Nearly all organizations have the policy of their plan, so a shard stores each text once, with a reference count: a hash
has the JSON under its name, and the count under 'name:organizations'. A text is deleted with its last reference.
]]

local function unpack_organization(value)
  local version, own_version, policy, meters, incarnation, since = cmsgpack.unpack(value)
  return {
    version = version, own_version = own_version, policy = policy, meters = meters, incarnation = incarnation,
    since = since,
  }
end

-- The organization as a table; nil if Redis does not know it.
local function read_organization(key, id)
  local value = redis.call('HGET', key, id)
  return value and unpack_organization(value) or nil
end

local function write_organization(key, id, organization)
  redis.call('HSET', key, id, cmsgpack.pack(organization.version, organization.own_version, organization.policy,
    organization.meters, organization.incarnation, organization.since))
end

-- Adds a meter to those counted; false if it is one of them already.
local function add_meter(organization, meter)
  if string.find(organization.meters, ' ' .. meter .. ' ', 1, true) then
    return false
  end
  organization.meters = (organization.meters == '' and ' ' or organization.meters) .. meter .. ' '
  organization.since = 0
  return true
end

-- Adds a reference to the text of a policy; returns what to store in its place.
local function share_policy(shared, text)
  local name = string.sub(redis.sha1hex(text), 1, 16)
  local present = redis.call('HGET', shared, name)
  if present and present ~= text then
    return text
  end
  if not present then
    redis.call('HSET', shared, name, text)
  end
  redis.call('HINCRBY', shared, name .. ':organizations', 1)
  return name
end

-- Removes a reference.
local function unshare_policy(shared, policy)
  if string.find(policy, '^%x+$') and redis.call('HINCRBY', shared, policy .. ':organizations', -1) <= 0 then
    redis.call('HDEL', shared, policy, policy .. ':organizations')
  end
end

-- Version, space and JSON of an organization's policy; nil if the text is missing.
local function policy_text(shared, organization)
  local text = organization.policy
  if string.find(text, '^%x+$') then
    text = redis.call('HGET', shared, text)
  end
  return text and string.format('%.0f %s', organization.own_version, text)
end
