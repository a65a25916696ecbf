# Sourced by the batch scripts in this folder: runs a command and forwards signals to it.
# shellcheck shell=bash
#
# Before the time limit, Slurm signals only the batch script (--signal=B:INT@120). On preemption, it sends TERM to all
# processes of the job; only results stored by then are kept. Commands that bash starts in the background ignore INT
# unless job control is on.

forward() {
  local status=0 received="" child
  set -m
  "$@" &
  child=$!
  trap 'received=INT; kill -INT "$child" 2>/dev/null || true' INT
  trap 'received=TERM; kill -INT "$child" 2>/dev/null || true' TERM
  wait "$child" || status=$?
  # A signal ends the wait, not the command, which first stores its results.
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  trap - INT TERM
  # After the time limit, requeue the job for the rest. Slurm itself requeues preempted jobs, and cancelled jobs stay
  # cancelled. Neither may count as successful.
  if [[ $received == INT ]]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  if [[ -n $received && $status -eq 0 ]]; then
    status=1
  fi
  return "$status"
}
