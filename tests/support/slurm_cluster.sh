#!/usr/bin/env bash
# A throw-away SLURM of one machine (munged, slurmctld, slurmd) on localhost, without systemd or cgroups.
#   slurm_cluster.sh start      slurm_cluster.sh stop
# Needs root and Debian's slurm-wlm and munge. CPUS=... pretends so many cores.
set -euo pipefail
ROOT=${SLURM_ROOT:-${TMPDIR:-/tmp}/slurm-test}
export SLURM_CONF=$ROOT/slurm.conf
HOST=$(hostname -s)

running() { [ -s "$1" ] && grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$(cat "$1")/status"; }

stop() {
  for file in "$ROOT"/{slurmd,slurmctld,munged}.pid; do
    if running "$file"; then kill "$(cat "$file")"; fi
  done
  for file in "$ROOT"/{slurmd,slurmctld,munged}.pid; do
    for _ in $(seq 3000); do running "$file" || break; sleep 0.1; done
  done
  if [ "$(readlink /etc/slurm/slurm.conf)" = "$SLURM_CONF" ]; then rm /etc/slurm/slurm.conf; fi
  rm -rf "$ROOT"
}

start() {
  mkdir -p "$ROOT"/{state,munge} /etc/slurm
  chmod 755 "$ROOT"
  socket=$ROOT/munge/munge.socket.2
  cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# For so long a requeued job is kept waiting; but a step that takes longer to begin, on a busy machine, is refused.
AuthInfo=socket=$socket,cred_expire=15
# The machine may be so busy that nothing answers for minutes: no job is lost by it, no node taken for down.
MessageTimeout=100
TCPTimeout=60
BatchStartTimeout=1800
SlurmdTimeout=0
UnkillableStepTimeout=1800
# What became of a job can be asked for as long as the tests run.
MinJobAge=86400
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool
SlurmctldPidFile=$ROOT/slurmctld.pid
SlurmdPidFile=$ROOT/slurmd.pid
SlurmctldLogFile=$ROOT/slurmctld.log
SlurmdLogFile=$ROOT/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
JobRequeue=1
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=${CPUS:-8} State=UNKNOWN
PartitionName=debug Nodes=$HOST Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
  ln -sf "$SLURM_CONF" /etc/slurm/slurm.conf # so that every client finds it
  head -c 128 /dev/urandom > "$ROOT/munge/munge.key"
  chmod 600 "$ROOT/munge/munge.key"
  munged --force --key-file="$ROOT/munge/munge.key" --socket="$socket" --pid-file="$ROOT/munged.pid" \
    --log-file="$ROOT/munge/munged.log" --seed-file="$ROOT/munge/seed"
  slurmctld -c -f "$SLURM_CONF"
  slurmd -f "$SLURM_CONF" -N "$HOST"
  while [ "$SECONDS" -lt 900 ]; do
    [ "$(timeout 60 sinfo --noheader --format=%T 2> /dev/null)" = idle ] && exit 0
    sleep 0.1
  done
  echo "the cluster does not come up: see $ROOT/*.log" >&2
  exit 1
}

"$1"
