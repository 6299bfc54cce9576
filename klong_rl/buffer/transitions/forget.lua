-- ARGV: group. Deletes a consumed group once it is archived; its counts and scores stay, and so does its name.
-- Answers 1, or 0 when it was forgotten before.
arguments(1)
local group = ARGV[1]
if redis.call("SISMEMBER", key("forgotten"), group) == 1 then return {"OK", 0} end
local state = redis.call("HGET", key("group", group), "state")
if not state then return unknown("group", group) end
if state ~= "consumed" then return wrong_state("group", group, state) end
for _, id in ipairs(redis.call("LRANGE", key("members", group), 0, -1)) do
  local f = redis.call("HMGET", key("episode", id), "epoch", "state")
  if f[1] ~= "1" or f[2] ~= "judged" then delete_staged(id) end -- its one holder didn't die if it was judged at once
  delete_segments(id, 0)
  redis.call("DEL", key("episode", id))
end
for _, packed in ipairs(redis.call("LRANGE", key("refs", group), 0, -1)) do
  redis.call("DEL", key("window", cmsgpack.unpack(packed)[1]))
end
redis.call("DEL", key("group", group), key("members", group), key("refs", group), key("came_in", group))
redis.call("ZREM", key("consumed"), group)
redis.call("SADD", key("forgotten"), group)
return {"OK", 1}
