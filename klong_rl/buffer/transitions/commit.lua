-- ARGV: step. Answers how many groups are consumed now that were not.
arguments(1)
local step, consumed = integer(int(1, "step")), 0
for _, leased in ipairs(redis.call("ZRANGEBYSCORE", key("leases"), "-inf", step)) do
  for _, group in ipairs(redis.call("LRANGE", key("lease", leased), 0, -1)) do
    move_windows(group, "leased", "consumed")
    redis.call("HSET", key("group", group), "step", leased)
    consume(group)
    consumed = consumed + 1
  end
  redis.call("DEL", key("lease", leased))
  redis.call("ZREM", key("leases"), leased)
  if tonumber(leased) > counter("committed", "-1") then redis.call("SET", key("committed"), leased) end
end
return {"OK", consumed}
