-- ARGV: episode, reason, epoch or "" (no holder: the rule of the group speaks). Answers 1, or 0 when already final.
local id, reason, epoch = ARGV[1], ARGV[2], tonumber(ARGV[3])
local e = look(id)
if not e then return unknown("episode", id) end
if epoch and epoch ~= e.epoch then return stale(e, epoch) end
if e.state == "judged" or e.state == "dropped" then return {"OK", 0} end
unqueue(e)
redis.call("DEL", key("segments", id))
redis.call("HSET", key("episode", id), "reason", reason)
count("drops", reason, 1)
move(e, "dropped")
settle(e)
return {"OK", 1}
