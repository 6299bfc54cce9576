-- ARGV: owner ("" for everyone), reason, request. What the owner ran goes back to the queue, what it judged to judging.
-- Answers how many episodes went back to the queue.
arguments(3)
local owner, reason, request = unpack(ARGV)
local before = receipt("abandon", request)
if before then return {"OK", before[1]} end
local held = redis.call("HGETALL", key("running"))
local n = 0
for i = 1, #held, 2 do
  if owner == "" or string.match(held[i + 1], "^%d+ (.*)$") == owner then
    back_to_queue(look(held[i]), reason)
    n = n + 1
  end
end
for _, id in ipairs(redis.call("ZRANGE", key("judging_out"), 0, -1)) do
  if owner == "" or redis.call("HGET", key("episode", id), "owner") == owner then back_to_judging(look(id)) end
end
keep_receipt("abandon", request, {n})
return {"OK", n}
