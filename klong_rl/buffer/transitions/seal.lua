-- ARGV: episode, epoch, outcome, its kind, then for each kind of token that was sampled for an agent from outside: what
-- it is called, how many. Answers nothing; sealing again with the same outcome changes nothing.
if #ARGV < 4 or #ARGV % 2 == 1 then malformed(#ARGV .. " arguments", "4 and 2 for each kind of token") end
local id, epoch, outcome, kind = ARGV[1], int(2, "epoch"), frame(3, "outcome", OUTCOME), ARGV[4]
local sampled = {}
for i = 5, #ARGV, 2 do
  sampled[#sampled + 1] = {ARGV[i], int(i + 1, "tokens")}
  if sampled[#sampled][2] < 0 then malformed("tokens", "0 or more") end
end
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
redis.call("HSET", key("episode", id), "outcome", outcome, "kind", kind, "sampled", cmsgpack.pack(sampled))
redis.call("HDEL", key("running"), id)
redis.call("ZADD", key("judging"), e.rank, id)
move(e, "sealed")
return {"OK"}
