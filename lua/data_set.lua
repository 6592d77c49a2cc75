--[[
What a shard's data set knows about missing counters. Joined to every script that starts a counter at zero.
]]

-- Whether a missing counter never existed: the data set was created more than `margin` ms before the period, and no
-- counter that ended as late was garbage-collected. `forgotten` is false if none was at all, `ends` '' if the period
-- has no end of its own.
local function never_existed(born, forgotten, margin, start, ends)
  return tonumber(born) + margin < start and (not forgotten or ends == '' or tonumber(ends) > tonumber(forgotten))
end
