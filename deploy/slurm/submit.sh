#!/usr/bin/env bash
# Submits the three steps, each of which starts after the previous one succeeds:
#   UNITS=16 deploy/slurm/submit.sh            # 16 tasks of one GPU each
#   deploy/slurm/submit.sh --partition gpu     # options are passed to every sbatch
# CURATION_CONFIG names the configuration. Every node must have access to it, the warehouse and the models. Logs are
# written to the current folder. `curate` must be on the PATH (activate its environment first).
set -euo pipefail

UNITS=${UNITS:-8}
CURATION_SLURM=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${CURATION_CONFIG:?set it to the path of curation.yaml}"
export UNITS CURATION_SLURM CURATION_CONFIG

if ! [[ $UNITS =~ ^[1-9][0-9]*$ ]]; then
  echo "UNITS must be a positive whole number, not $UNITS" >&2
  exit 2
fi
command -v curate >/dev/null || { echo "curate is not on the PATH. Activate its environment first." >&2; exit 2; }

submit() { sbatch --parsable --kill-on-invalid-dep=yes "$@"; }

# Federated clusters print JOB;CLUSTER.
prepare=$(submit "$@" "$CURATION_SLURM/prepare.sbatch")
measure=$(submit "$@" --dependency="afterok:${prepare%%;*}" --array="1-$UNITS" "$CURATION_SLURM/measure.sbatch")
finish=$(submit "$@" --dependency="afterok:${measure%%;*}" "$CURATION_SLURM/finish.sbatch")
echo "prepare ${prepare%%;*}, measure ${measure%%;*} (1-$UNITS), finish ${finish%%;*}"
