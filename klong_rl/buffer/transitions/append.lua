-- ARGV: episode, epoch, seq, action tokens, segment. Answers the limits of an episode that was extended; the same segment
-- again changes nothing.
arguments(5)
local id, epoch, seq, tokens = ARGV[1], int(2, "epoch"), int(3, "seq"), int(4, "tokens")
local segment = frame(5, "segment", SEGMENT)
local episode = key("episode", id)
local f = redis.call("HMGET", episode, "state", "epoch", "failures", "timeout_s", "max_turns", "furthest")
if not f[1] then return unknown("episode", id) end
local e = {id = id, state = f[1], epoch = tonumber(f[2])}
if epoch ~= e.epoch then return stale(e, epoch) end
local expected = redis.call("LLEN", key("segments", id))
if seq < expected then
  if redis.call("LINDEX", key("segments", id), seq) ~= segment then return conflict("segment", id .. "/" .. seq) end
  return {"OK", f[4], f[5]}
end
if e.state ~= "running" then return stale(e, epoch) end
if seq > expected then return {"OUT_OF_SEQUENCE", id, integer(seq), expected} end
redis.call("RPUSH", key("segments", id), segment)
redis.call("RPUSH", key("sizes", id), tokens)
redis.call("HDEL", episode, "intended", "intended_tokens")
-- To get again as far as before is no progress: an episode that fails there each time is given up in the end.
if f[3] ~= "0" and seq >= tonumber(f[6] or 0) then redis.call("HSET", episode, "failures", 0) end
count("appended", "segments", 1)
count("appended", "tokens", tokens)
return {"OK", f[4], f[5]}
