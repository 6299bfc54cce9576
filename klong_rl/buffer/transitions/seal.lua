-- ARGV: episode, epoch, outcome, its kind. Answers nothing; sealing again with the same outcome changes nothing.
arguments(4)
local id, epoch, outcome, kind = ARGV[1], int(2, "epoch"), frame(3, "outcome", OUTCOME), ARGV[4]
local e = look(id)
if not e then return unknown("episode", id) end
if epoch ~= e.epoch then return stale(e, epoch) end
if e.state == "sealed" or e.state == "judged" then
  if redis.call("HGET", key("episode", id), "outcome") ~= outcome then return conflict("outcome of episode", id) end
  return {"OK"}
end
if e.state ~= "running" then return stale(e, epoch) end
if redis.call("HEXISTS", key("episode", id), "intended") == 1 then
  return wrong_state("episode", id, "running, with an action that wasn't appended")
end
redis.call("HSET", key("episode", id), "outcome", outcome, "kind", kind)
redis.call("HDEL", key("running"), id)
redis.call("ZADD", key("judging"), e.rank, id)
move(e, "sealed")
return {"OK"}
