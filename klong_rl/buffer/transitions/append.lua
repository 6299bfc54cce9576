-- ARGV: episode, epoch, seq, segment. Answers nothing; the same segment again changes nothing.
local id, epoch, seq, segment = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local e = look(id)
if not e then return unknown("episode", id) end
if epoch ~= e.epoch then return stale(e, epoch) end
local expected = redis.call("LLEN", key("segments", id))
if seq < expected then
  if redis.call("LINDEX", key("segments", id), seq) ~= segment then return conflict("segment", id .. "/" .. seq) end
  return {"OK"}
end
if e.state ~= "running" then return stale(e, epoch) end
if seq > expected then return {"OUT_OF_SEQUENCE", id, seq, expected} end
redis.call("RPUSH", key("segments", id), segment)
return {"OK"}
