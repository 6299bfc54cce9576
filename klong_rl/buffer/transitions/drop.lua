-- ARGV: episode, reason, epoch or "" (no holder: the rule of the group speaks). Answers 1, or 0 when already final.
arguments(3)
local id, reason, epoch = ARGV[1], ARGV[2], ARGV[3] ~= "" and int(3, "epoch") or nil
local e = look(id)
if not e then return unknown("episode", id) end
if epoch and epoch ~= e.epoch then return stale(e, epoch) end
if e.state == "judged" or e.state == "dropped" then return {"OK", 0} end
unqueue(e)
discard(id, 0, reason)
redis.call("HSET", key("episode", id), "reason", reason)
count("drops", reason, 1)
move(e, "dropped")
settle(e)
return {"OK", 1}
