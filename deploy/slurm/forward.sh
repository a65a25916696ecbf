# For the batch scripts here, which source it: runs a command that is told when its time is up.
# shellcheck shell=bash
#
# Before the time limit Slurm tells the batch script alone (--signal=B:INT@120). When a job is preempted it sends TERM to
# all of its processes: then what was stored last is what stays. A command that bash starts in the background ignores
# INT, unless job control is on.

forward() {
  local status=0 told="" child
  set -m
  "$@" &
  child=$!
  trap 'told=INT; kill -INT "$child" 2>/dev/null || true' INT
  trap 'told=TERM; kill -INT "$child" 2>/dev/null || true' TERM
  wait "$child" || status=$?
  # A signal ends the wait, not the command, which stores what it has.
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  trap - INT TERM
  # Time is up: on with the rest in another turn. A job that is preempted is queued again by Slurm itself, and one that is
  # cancelled by nobody. Neither may pass for one that went to its end.
  if [[ $told == INT ]]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  if [[ -n $told && $status -eq 0 ]]; then
    status=1
  fi
  return "$status"
}
