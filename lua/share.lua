#!lua
--[[
Makes an organization's policy one with those of its shard that read the same, because nearly all do, and the text is
most of what an organization takes.

KEYS
  [1] the organization
  [2] the shard's shared policies: by the name of each its text, and under 'name:organizations' how many refer to it

ARGV
  none

Returns 1 if it is shared now and was not, otherwise 0.

Invariants
  Only an organization of which something was counted shares, because one that expires gives nothing back.
  A name stands for one text: whose text has the name of another keeps its own.
  Whoever refers to a text is counted, and the text goes with the last.
]]
local organization = redis.call('HMGET', KEYS[1], 'p', 'm', 'v', 'i')
local version, text = string.match(organization[1] or '', '^(%d+) ({.*)$')
if not text or not organization[2] then
  return 0
end
local name = string.sub(redis.sha1hex(text), 1, 16)
local held = redis.call('HGET', KEYS[2], name)
if held and held ~= text then
  return 0
end
local fields = {'v', organization[3], 'p', version .. ' ' .. name, 'm', organization[2]}
if organization[4] then
  fields[7], fields[8] = 'i', organization[4]
end
-- Anew, because a hash that has held a long text does not return to the compact form.
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(fields))
if not held then
  redis.call('HSET', KEYS[2], name, text)
end
redis.call('HINCRBY', KEYS[2], name .. ':organizations', 1)
return 1
