-- ARGV: reason, request, 1 to keep segments. Answers how many episodes went back to the queue.
-- What judges held is theirs to take again at once.
local reason, request, keep_segments = ARGV[1], ARGV[2], ARGV[3] == "1"
local before = receipt(request)
if before then return {"OK", before[1]} end
local running = redis.call("HKEYS", key("running"))
for _, id in ipairs(running) do back_to_queue(look(id), reason, keep_segments) end
for _, id in ipairs(redis.call("ZRANGE", key("judging_out"), 0, -1)) do back_to_judging(look(id)) end
keep_receipt(request, {#running})
return {"OK", #running}
