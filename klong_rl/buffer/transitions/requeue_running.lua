-- ARGV: reason, request, 1 to keep segments, 1 for sealed ones too. Answers how many episodes went back to the queue.
-- What judges held is theirs to take again at once.
local reason, request, keep_segments = ARGV[1], ARGV[2], ARGV[3] == "1"
local and_sealed = ARGV[4] == "1"
local before = receipt(request)
if before then return {"OK", before[1]} end
local running = redis.call("HKEYS", key("running"))
for _, id in ipairs(running) do back_to_queue(look(id), reason, keep_segments) end
for _, id in ipairs(redis.call("ZRANGE", key("judging_out"), 0, -1)) do back_to_judging(look(id)) end
local n = #running
if and_sealed then
  local sealed = redis.call("ZRANGE", key("judging"), 0, -1)
  for _, id in ipairs(sealed) do back_to_queue(look(id), reason, keep_segments) end
  n = n + #sealed
end
keep_receipt(request, {n})
return {"OK", n}
