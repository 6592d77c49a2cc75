#!lua
--[[
Makes a newer policy known: to the organization, and to counters of it that are running.

KEYS
  [1] the organization
  [2] the shard's dirty index
  [3] the shard's generation
  [4] the shard's shared policies
  then the counters

ARGV
  [1] policy version
  [2] the policy as JSON, without its version
  [3] now                   ms since the epoch
  [4] ms to remember an organization of which nothing was counted
  [5] incarnation           policy version of the organization's last deletion, 0 if it never was
  [6] '1' if all that calls under this policy could reach of the life before that was erased, otherwise '0'
  then for each counter: the stamp without its generation, 'version:limit:enforcement:end'

Returns one of
  {version, meters, false}  the version that Redis knows now, and every meter counted, separated by spaces
  {'former', meters, policy}
                            what is here is of a life before the deletion and must be erased first: every meter
                            counted in it, and its policy: version, space, JSON

Invariants
  Nobody learns the policy of a new life here before the counters of the former one are erased, and none of
  those is opened or restored once that has begun.
  A newer version is never replaced by an older one, neither the organization's nor a counter's.
  Closed counters, and counters of a period that is over, keep what they have.
  Counters of another generation are frozen: were their sequence to grow, it would overtake newer counts
  that Postgres may hold of them. They get the policy when they are restored.
  A counter that changes becomes dirty, so that its snapshot carries the new limit.
  A policy stands here in full; `share.lua` makes it one with those that read the same. What the one before shared is
  given back.
  A limit that ends leaves in the counter what became of it, so that a flush tells what was crossed.
  An organization of which nothing was counted in this data set is forgotten after [4], so that asking for
  organizations that do not exist fills nothing; one with meters has no expiry.
]]
local version, now, incarnation = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[5])
local organization = redis.call('HMGET', KEYS[1], 'v', 'm', 'i', 'p')
local known = tonumber(organization[1])
local shared = string.match(organization[4] or '', '^%d+ (%x+)$')
if known and (tonumber(organization[3]) or 0) < incarnation then
  if ARGV[6] ~= '1' then
    redis.call('HSET', KEYS[1], 'v', math.max(known, incarnation))
    local former = organization[4]
    if shared then
      former = string.match(former, '^%d+ ') .. (redis.call('HGET', KEYS[4], shared) or '')
    end
    return {'former', organization[2] or '', former}
  end
  redis.call('HDEL', KEYS[1], 'm')
  organization[2], known = nil, nil
end
-- What another release wrote is written anew, unless it is newer.
local readable = string.find(organization[4] or '', '^%d+ ')
if not known or known < version or known == version and not readable then
  redis.call('HSET', KEYS[1], 'v', ARGV[1], 'p', ARGV[1] .. ' ' .. ARGV[2])
  if shared and redis.call('HINCRBY', KEYS[4], shared .. ':organizations', -1) <= 0 then
    redis.call('HDEL', KEYS[4], shared, shared .. ':organizations')
  end
  if incarnation > 0 then
    redis.call('HSET', KEYS[1], 'i', ARGV[5])
  end
  if not organization[2] then
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
  end
  known = version
end
local current = redis.call('HGET', KEYS[3], 'number')
for i = 5, #KEYS do
  local values = redis.call('HMGET', KEYS[i], 's', 'f', 'p')
  if values[1] then
    local generation, held, limit, enforcement, ends = string.match(values[3], '^(%d+):(%d+):(%d*):(%a):(%d*)$')
    local running = ends == '' or now < tonumber(ends)
    if generation == current and not string.find(enforcement, '%u') and running and tonumber(held) < version then
      if limit .. ':' .. enforcement ~= string.match(ARGV[i + 2], '^%d+:(%d*:%a):') then
        local memory = redis.call('HMGET', KEYS[i], 't', 'v', 'm', 'u', 'd')
        local told, since = string.match(memory[1] or '0:0:0:0', '^(%d+:%d):(%d+:%d+)$')
        local peak, used, denied = tonumber(memory[3]) or 0, tonumber(memory[4]), memory[5] or '0'
        local past = string.format('%s:%s:%s:%.0f:%s:%.0f ', since, limit, enforcement, math.max(peak, used), denied, used)
        redis.call('HSET', KEYS[i], 't', told .. ':' .. ARGV[1] .. ':' .. denied, 'v', (memory[2] or '') .. past)
        redis.call('HDEL', KEYS[i], 'm')
      end
      redis.call('HSET', KEYS[i], 's', tonumber(values[1]) + 1, 'p', generation .. ':' .. ARGV[i + 2])
      if tonumber(values[1]) == (tonumber(values[2]) or 0) then
        redis.call('ZADD', KEYS[2], now, KEYS[i])
        redis.call('PERSIST', KEYS[i])
      end
    end
  end
end
return {known, organization[2] or '', false}
