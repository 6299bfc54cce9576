-- ARGV: step. The leases of later steps become ready again in their old order. Answers how many groups did.
arguments(1)
local step, returned = integer(int(1, "step")), 0
local committed = counter("committed", "-1")
if tonumber(step) < committed then return {"COMMITTED", step, integer(committed)} end
for _, leased in ipairs(redis.call("ZRANGEBYSCORE", key("leases"), "(" .. step, "+inf")) do
  for _, group in ipairs(redis.call("LRANGE", key("lease", leased), 0, -1)) do
    redis.call("ZADD", key("ready"), redis.call("HGET", key("group", group), "order"), group)
    redis.call("HSET", key("group", group), "state", "ready")
    move_windows(group, "leased", "ready")
    returned = returned + 1
  end
  redis.call("DEL", key("lease", leased))
  redis.call("ZREM", key("leases"), leased)
end
return {"OK", returned}
