--[[
What a shard's data set knows of counters that are missing; put in front of each script that starts one at zero.
]]

-- Whether a missing counter was never there: the data set was born before its period, by a margin in ms, and has
-- forgotten none that ended as late. `forgotten` is false where it has forgotten nothing, `ends` '' where the period does
-- not end by itself.
local function knows_all(born, forgotten, margin, start, ends)
  return tonumber(born) + margin < start and (not forgotten or ends == '' or tonumber(ends) > tonumber(forgotten))
end
