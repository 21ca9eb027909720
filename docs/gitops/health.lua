-- Health of a MediaNestDatabase, MediaNestBackup or MediaNestOperation for Argo CD: Healthy, Progressing, Degraded or
-- Suspended.
-- Reasons of Ready=False that don't pass by themselves; docs/runbooks tells what to do about each.
local needs_a_person = {
  BackupFailed = true,
  BackupMisconfigured = true,
  BackupOverdue = true,
  CollationChanged = true,
  Diverged = true,
  Drifted = true,
  HardeningFailed = true,
  ImageUnavailable = true,
  IndexesInvalid = true,
  IndexesMissing = true,
  InternalError = true,
  OutdatedDefinition = true,
  PodFailing = true,
  PodRejected = true,
  QuotaExceeded = true,
  ReplicaNotStreaming = true,
  StatementFailed = true,
  Unschedulable = true,
  VerificationFailed = true,
  VolumeUnavailable = true,
}

local function health(status, message)
  return { status = status, message = message }
end

if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", "Being deleted")
end
if obj.status == nil or obj.status.conditions == nil then
  return health("Progressing", "The operator has not looked at it yet")
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "The operator has not looked at this generation yet")
end

local conditions = {}
for _, condition in ipairs(obj.status.conditions) do
  conditions[condition.type] = condition
end
local ready, stalled = conditions.Ready, conditions.Stalled
if stalled ~= nil and stalled.status == "True" then
  return health("Degraded", stalled.reason .. ": " .. stalled.message)
end
if ready == nil then
  return health("Progressing", "The operator has not looked at it yet")
end
local message = ready.reason .. ": " .. ready.message
if ready.status == "True" then
  return health("Healthy", ready.message)
end
if ready.reason == "Hibernated" or ready.reason == "Paused" then
  return health("Suspended", message)
end
if needs_a_person[ready.reason] then
  return health("Degraded", message)
end
return health("Progressing", message)
