-- ARGV: episode, epoch, number of segments to keep, reason. What is after them, its sandbox being gone, is given up.
-- Answers how many action tokens were.
arguments(4)
local id, epoch, n, reason = ARGV[1], int(2, "epoch"), int(3, "segments to keep"), ARGV[4]
if n < 0 then malformed("segments to keep", "0 or more") end
local e = look(id)
if not e then return unknown("episode", id) end
if epoch ~= e.epoch or e.state ~= "running" then return stale(e, epoch) end
redis.call("HDEL", key("episode", id), "outcome", "kind")
if tonumber(redis.call("HGET", key("episode", id), "snapshot_at") or 0) > n then
  redis.call("HDEL", key("episode", id), "snapshot", "snapshot_at")
end
local furthest = tonumber(redis.call("HGET", key("episode", id), "furthest") or 0)
redis.call("HSET", key("episode", id), "furthest", math.max(furthest, redis.call("LLEN", key("sizes", id))))
return {"OK", discard(id, n, reason)}
