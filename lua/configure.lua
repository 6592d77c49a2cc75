#!lua
--[[
Makes a newer policy known: to the organization, and to counters of it that are running.

KEYS
  [1] the hash that has the organization
  [2] the shard's dirty index
  [3] the shard's generation
  [4] the shard's shared policies
  then the counters

ARGV
  [1] policy version
  [2] the policy as JSON, without its version
  [3] now                   ms since the epoch
  [4] organization          its id
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
  A policy is one with those of its shard that read the same; what the one before shared is given back.
  A limit that ends leaves in the counter what became of it, so that a flush tells what was crossed.
]]
local version, now, id, incarnation = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local organization = read_organization(KEYS[1], id)
local known = organization and organization.version
local meters = organization and organization.meters or ''
if known and organization.incarnation < incarnation then
  if ARGV[6] ~= '1' then
    organization.version = math.max(known, incarnation)
    write_organization(KEYS[1], id, organization)
    return {'former', meters, policy_text(KEYS[4], organization) or ''}
  end
  known, meters = nil, ''
end
if not known or known < version then
  local policy = share_policy(KEYS[4], ARGV[2])
  if organization then
    unshare_policy(KEYS[4], organization.policy)
    incarnation = math.max(incarnation, organization.incarnation)
  end
  write_organization(KEYS[1], id, {
    version = version, own_version = version, policy = policy, meters = meters, incarnation = incarnation,
    since = meters == '' and now or 0,
  })
  known = version
end
local current = redis.call('HGET', KEYS[3], 'number')
for i = 5, #KEYS do
  local held = redis.call('GET', KEYS[i])
  local counter = held and unpack_counter(held)
  if counter then
    local generation, known_version, limit, enforcement, ends =
      string.match(counter.stamp, '^(%d+):(%d+):(%d*):(%a):(%d*)$')
    local running = ends == '' or now < tonumber(ends)
    if generation == current and not string.find(enforcement, '%u') and running and tonumber(known_version) < version then
      if limit .. ':' .. enforcement ~= string.match(ARGV[i + 2], '^%d+:(%d*:%a):') then
        local told, since = string.match(counter.told, '^(%d+:%d):(%d+:%d+)$')
        local peak, used, denied = counter.peak, counter.used, counter.denied
        local past = string.format('%s:%s:%s:%.0f:%.0f:%.0f:%s ', since, limit, enforcement, math.max(peak, used), denied, used,
          counter.crossed)
        counter.told, counter.past = string.format('%s:%s:%.0f', told, ARGV[1], denied), counter.past .. past
        counter.peak, counter.crossed = 0, ''
      end
      local clean = counter.sequence == counter.stored
      counter.sequence, counter.stamp = counter.sequence + 1, generation .. ':' .. ARGV[i + 2]
      redis.call('SET', KEYS[i], pack_counter(counter))
      if clean then
        redis.call('ZADD', KEYS[2], now, KEYS[i])
      end
    end
  end
end
return {known, meters, false}
