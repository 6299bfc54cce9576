-- ARGV: episode, epoch, verdict, its score. Answers 1 for the first verdict, 0 for a later one, which changes nothing.
arguments(4)
local id, epoch, verdict, score = ARGV[1], int(2, "epoch"), frame(3, "verdict", VERDICT), ARGV[4]
number(4, "score")
local e = look(id)
if not e then return unknown("episode", id) end
if epoch ~= e.epoch then return stale(e, epoch) end
if e.state == "judged" then return {"OK", 0} end
if e.state ~= "sealed" then return stale(e, epoch) end
redis.call("HSET", key("episode", id), "verdict", verdict, "score", score)
count("outcomes:" .. e.purpose, redis.call("HGET", key("episode", id), "kind"), 1)
for _, kind in ipairs(cmsgpack.unpack(redis.call("HGET", key("episode", id), "sampled") or "\144")) do
  count("sampled", kind[1], kind[2])
end
unqueue(e)
move(e, "judged")
settle(e)
return {"OK", 1}
