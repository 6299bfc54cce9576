-- ARGV: episode, epoch, number of segments that it follows, image. Answers nothing; an older one doesn't replace a newer.
arguments(4)
local id, epoch, n, image = ARGV[1], int(2, "epoch"), int(3, "segments"), ARGV[4]
local e = look(id)
if not e then return unknown("episode", id) end
if epoch ~= e.epoch or (e.state ~= "running" and e.state ~= "sealed") then return stale(e, epoch) end
local held = redis.call("LLEN", key("sizes", id))
if n < 0 or n > held then return {"OUT_OF_SEQUENCE", id, integer(n), held} end
if tonumber(redis.call("HGET", key("episode", id), "snapshot_at") or -1) <= n then
  redis.call("HSET", key("episode", id), "snapshot", image, "snapshot_at", integer(n))
end
return {"OK"}
