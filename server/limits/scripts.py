"""The Lua that Redis runs, each call as one step. All time is the Redis server's own: no controller's clock matters.

tephra:limits:{name}  hash: the level of each bucket and `at`, when they were last filled (ms)
tephra:leases:{name}  sorted set: requests under way, by when their lease ends (ms)

A bucket holds one minute's worth and fills evenly; a missing one is full. A level may be negative, when a request used
more than was set aside for it. Keys expire once they say nothing more than their absence would.

Where the server's clock went back, buckets fill from the new time on, and leases end one lease after it at the latest.
Where it went forward, buckets are full once, and requests under way lose their leases: for as long as they run, that
many more are let in.
"""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS: limits, leases. ARGV: 'take' or 'settle', lease id or '', lease in ms, most leases (0: no limit), then for each
# bucket its capacity (0: no such limit) and cost. Returns the number of the limit that refused (0: none, 4: leases), ms
# until there may be room, then for each bucket remaining and ms until it is full.
WEIGH = (
    _NOW
    + """
local take, lease = ARGV[1] == 'take', ARGV[2]
local names = {'requests', 'tokens', 'images'}
local at = tonumber(redis.call('HGET', KEYS[1], 'at')) or now
if at > now then
  at = now
  redis.call('HSET', KEYS[1], 'at', now)
end
local capacity, cost, level = {}, {}, {}
local refused, wait = 0, 0
for i, name in ipairs(names) do
  capacity[i], cost[i] = tonumber(ARGV[3 + 2 * i]), tonumber(ARGV[4 + 2 * i])
  if capacity[i] > 0 then
    level[i] = tonumber(redis.call('HGET', KEYS[1], name)) or capacity[i]
    level[i] = math.min(capacity[i], level[i] + math.max(0, now - at) * capacity[i] / 60000)
    local missing = (cost[i] - level[i]) * 60000 / capacity[i]
    if take and cost[i] > 0 and missing > wait then refused, wait = i, missing end
  end
end
local most = tonumber(ARGV[4])
if take and lease ~= '' and most > 0 and refused == 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  for _, late in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. (now + ARGV[3]), '+inf')) do
    redis.call('ZADD', KEYS[2], now + ARGV[3], late)
  end
  if redis.call('ZCARD', KEYS[2]) >= most then refused, wait = 4, 1000 end
end
local spare = 0
local result = {refused, math.ceil(wait)}
for i, name in ipairs(names) do
  if capacity[i] > 0 then
    if refused == 0 then
      level[i] = math.min(capacity[i], level[i] - cost[i])
      redis.call('HSET', KEYS[1], name, tostring(level[i]), 'at', now)
    end
    local full = math.ceil((capacity[i] - level[i]) * 60000 / capacity[i])
    spare = math.max(spare, full)
    table.insert(result, math.floor(math.max(0, level[i])))
    table.insert(result, full)
  else
    table.insert(result, 0)
    table.insert(result, 0)
  end
end
if refused == 0 then
  if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('PEXPIRE', KEYS[1], spare + 1000) end
  if lease ~= '' and most > 0 then
    if take then
      redis.call('ZADD', KEYS[2], now + ARGV[3], lease)
      redis.call('PEXPIRE', KEYS[2], ARGV[3])
    else
      redis.call('ZREM', KEYS[2], lease)
    end
  end
end
return result
"""
)

# KEYS: leases. ARGV: lease in ms, 'XX' (only those that are there) or 'ALL', then lease ids.
RENEW = (
    _NOW
    + """
for i = 3, #ARGV do
  if ARGV[2] == 'XX' then
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[i])
  else
    redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i])
  end
end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
)
