-- ARGV: reason, request, 1 to keep segments. Answers how many episodes went back to the queue.
local reason, request, keep_segments = ARGV[1], ARGV[2], ARGV[3] == "1"
local before = receipt(request)
if before then return {"OK", before[1]} end
local running = redis.call("HKEYS", key("running"))
for _, id in ipairs(running) do back_to_queue(look(id), reason, keep_segments) end
keep_receipt(request, {#running})
return {"OK", #running}
