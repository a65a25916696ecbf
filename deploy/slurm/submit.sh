#!/usr/bin/env bash
# Submits the three steps, each after the one before it has ended well:
#   UNITS=16 deploy/slurm/submit.sh            # 16 tasks of one GPU each
#   deploy/slurm/submit.sh --partition gpu     # options are handed to every sbatch
# CURATION_CONFIG names the configuration; it, the warehouse and the models lie where every node finds them. Logs are
# written to the folder that this is called in. `curate` has to be on the PATH (activate the environment first).
set -euo pipefail

UNITS=${UNITS:-8}
CURATION_SLURM=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${CURATION_CONFIG:?set it to the path of curation.yaml}"
export UNITS CURATION_SLURM CURATION_CONFIG

if ! [[ $UNITS =~ ^[1-9][0-9]*$ ]]; then
  echo "UNITS must be a whole number from 1 on, not $UNITS" >&2
  exit 2
fi
command -v curate >/dev/null || { echo "curate is not on the PATH: activate its environment first" >&2; exit 2; }

submit() { sbatch --parsable --kill-on-invalid-dep=yes "$@"; }

# Federated clusters answer JOB;CLUSTER.
prepare=$(submit "$@" "$CURATION_SLURM/prepare.sbatch")
score=$(submit "$@" --dependency="afterok:${prepare%%;*}" --array="1-$UNITS" "$CURATION_SLURM/score.sbatch")
finish=$(submit "$@" --dependency="afterok:${score%%;*}" "$CURATION_SLURM/finish.sbatch")
echo "prepare ${prepare%%;*}, score ${score%%;*} (1-$UNITS), finish ${finish%%;*}"
