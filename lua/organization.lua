--[[
What is known of an organization; put in front of each script that reads or writes it.

The organizations of a shard are spread over 64 hashes, each in the field of its id, because a key of its own would take
more than what it holds. While a hash is small and its values are short, Redis holds it in one piece.
A value is a sequence of MessagePack items:
  version                   policy version; ahead of the policy's while a deleted organization's counters are erased
  own_version               of the policy
  policy                    the name under which the shard's shared policies have its JSON; or that itself, where another
                            text has the name already
  meters                    every meter counted in this data set, with a space before and behind each; '' where nothing
                            was counted
  incarnation               policy version of the organization's last deletion, 0 if it never was
  since                     ms since the epoch; where nothing was counted, when the policy was written; otherwise 0

Nearly all organizations have the policy of their plan, so a shard holds each text once: in a hash, by the name of each its
JSON, and under 'name:organizations' how many refer to it. Whoever refers to a text is counted, and the text goes with
the last.
]]

local function unpack_organization(value)
  local version, own_version, policy, meters, incarnation, since = cmsgpack.unpack(value)
  return {
    version = version, own_version = own_version, policy = policy, meters = meters, incarnation = incarnation,
    since = since,
  }
end

-- As a table; nil where nothing is known.
local function read_organization(key, id)
  local value = redis.call('HGET', key, id)
  return value and unpack_organization(value) or nil
end

local function write_organization(key, id, organization)
  redis.call('HSET', key, id, cmsgpack.pack(organization.version, organization.own_version, organization.policy,
    organization.meters, organization.incarnation, organization.since))
end

-- Lists a meter as counted; says whether it was not yet.
local function list_meter(organization, meter)
  if string.find(organization.meters, ' ' .. meter .. ' ', 1, true) then
    return false
  end
  organization.meters = (organization.meters == '' and ' ' or organization.meters) .. meter .. ' '
  organization.since = 0
  return true
end

-- What stands for the text of a policy from now on.
local function share_policy(shared, text)
  local name = string.sub(redis.sha1hex(text), 1, 16)
  local held = redis.call('HGET', shared, name)
  if held and held ~= text then
    return text
  end
  if not held then
    redis.call('HSET', shared, name, text)
  end
  redis.call('HINCRBY', shared, name .. ':organizations', 1)
  return name
end

-- What stood for a policy does so no more.
local function unshare_policy(shared, policy)
  if string.find(policy, '^%x+$') and redis.call('HINCRBY', shared, policy .. ':organizations', -1) <= 0 then
    redis.call('HDEL', shared, policy, policy .. ':organizations')
  end
end

-- Version, space and JSON of an organization's policy; nil where the text is gone.
local function policy_text(shared, organization)
  local text = organization.policy
  if string.find(text, '^%x+$') then
    text = redis.call('HGET', shared, text)
  end
  return text and string.format('%.0f %s', organization.own_version, text)
end
