#!lua
--[[
Applies a newer policy to an organization, and to its running counters.

KEYS
  [1] the hash that has the organization
  [2] the shard's dirty index
  [3] the shard's generation
  [4] the shard's shared policies
  then the counters

ARGV
  [1] policy version
  [2] the policy as JSON, without its version
  [3] now                   Unix time, ms
  [4] organization          its id
  [5] incarnation           policy version of the organization's last deletion, 0 if it was never deleted
  [6] '1' if every counter of a stale incarnation that calls could reach is erased, otherwise '0'
  then for each counter: the stamp without its generation, 'version:limit:enforcement:end'

Returns one of
  {version, meters, false}  the version that Redis has now, and every meter counted, separated by spaces
  {'stale', meters, policy}
                            Redis has a stale incarnation, which must be erased first: every meter counted in it, and
                            its policy: version, space, JSON

Invariants
  The policy of a new incarnation is not applied before the counters of the stale one are erased, and no counter is
  started or restored once that has begun.
  A newer version is never replaced by an older one, neither the organization's nor a counter's.
  Closed counters, and counters whose period is over, keep their stamp.
  Counters of another generation are frozen: if their sequence grew, it would overtake newer counts that Postgres may
  have. They get the policy when they are restored.
  A counter that changes becomes dirty, so that its snapshot has the new limit, unless nothing was ever counted in it.
  Equal policies of a shard share one text; the reference to the previous one is removed.
  A limit that ends is added to the counter's previous limits, so that a flush finds what was crossed.
]]
local version, now, id, incarnation = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local organization = read_organization(KEYS[1], id)
local known = organization and organization.version
local meters = organization and organization.meters or ''
if known and organization.incarnation < incarnation then
  if ARGV[6] ~= '1' then
    organization.version = math.max(known, incarnation)
    write_organization(KEYS[1], id, organization)
    return {'stale', meters, policy_text(KEYS[4], organization) or ''}
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

-- The new limit of a counter; the old one is added to the previous limits.
local function change_limit(counter, limit, enforcement)
  local notified, since = string.match(counter.notified, '^(%d+:%d):(%d+:%d+)$')
  counter.previous_limits = counter.previous_limits .. string.format('%s:%s:%s:%.0f:%.0f:%.0f:%s ', since, limit,
    enforcement, math.max(counter.peak, counter.used), counter.denied, counter.used, counter.crossed)
  counter.notified = string.format('%s:%s:%.0f', notified, ARGV[1], counter.denied)
  counter.peak, counter.crossed = 0, ''
end

local current = redis.call('HGET', KEYS[3], 'number')
for i = 5, #KEYS do
  local value, stamp = redis.call('GET', KEYS[i]), ARGV[i + 2]
  local counter = value and unpack_counter(value)
  if counter then
    local generation, own_version, limit, enforcement, ends =
      string.match(counter.stamp, '^(%d+):(%d+):(%d*):(%a):(%d*)$')
    local running = ends == '' or now < tonumber(ends)
    if generation == current and not string.find(enforcement, '%u') and running and tonumber(own_version) < version then
      stamp = generation .. ':' .. stamp
      if counter.sequence == 0 then
        counter = new_counter(stamp)
      else
        if limit .. ':' .. enforcement ~= string.match(stamp, '^%d+:%d+:(%d*:%a):') then
          change_limit(counter, limit, enforcement)
        end
        if counter.sequence == counter.stored then
          redis.call('ZADD', KEYS[2], now, KEYS[i])
        end
        counter.sequence, counter.stamp = counter.sequence + 1, stamp
      end
      redis.call('SET', KEYS[i], pack_counter(counter))
    end
  end
end
return {known, meters, false}
