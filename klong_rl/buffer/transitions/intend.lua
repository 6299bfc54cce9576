-- ARGV: episode, epoch, seq, action tokens, turn. The write-ahead of an action: it is here before its command runs, until
-- the segment of that turn is. Answers nothing; again, or late, it changes nothing.
arguments(5)
local id, epoch, seq, tokens = ARGV[1], int(2, "epoch"), int(3, "seq"), int(4, "tokens")
local turn = frame(5, "turn", TURN)
if seq < 0 or tokens < 0 then malformed("seq and tokens", "0 or more") end
local e = look(id)
if not e then return unknown("episode", id) end
if epoch ~= e.epoch then return stale(e, epoch) end
local expected = redis.call("LLEN", key("sizes", id))
if seq < expected then return {"OK"} end
if e.state ~= "running" then return stale(e, epoch) end
if seq > expected then return {"OUT_OF_SEQUENCE", id, integer(seq), expected} end
local known = redis.call("HGET", key("episode", id), "intended")
if known and known ~= turn then return conflict("intended action of episode", id .. "/" .. seq) end
redis.call("HSET", key("episode", id), "intended", turn, "intended_tokens", tokens)
return {"OK"}
