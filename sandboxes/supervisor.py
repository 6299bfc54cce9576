"""The shell text of a supervisor: see sandboxes.shell for what calls it, and for a picture.

It is started by the executor as `sh -s MARK`, which shows in its command line: so the next one finds it, whoever opened
it, and ends it.

POSIX's corners: dash takes `kill -s KILL -- -N` and `kill -0 -N` but not `kill -KILL -- -N`; and `true > file` is not
`: > file`, since a POSIX shell exits where the redirection of a special built-in fails.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

NOT_A_FILE = 66  # EX_NOINPUT, what klong_read answers
WAS_KILLED = 1  # what klong_take answers: see there
KILL_LINE = b"klong_kill\n"
WAKE_LINE = b"klong_wake\n"

# klong_open: is all there that a supervisor needs? And which kind of shell is the executor?
# klong_exec: hand a command over to the executor, which reports its end. Meanwhile the supervisor takes klong_kill.
# klong_kill: a command whose time is up goes with all that it began: its group, and by klong_end_strays what left the
#   group. Those are the orphans that are no older than the command, then the orphans that these leave, and so on. What
#   an older background job starts meanwhile has that job as its parent. Only where all processes are the sandbox's own
#   (klong_alone): on a bare host the orphans are anyone's. It does nothing between two commands, and says nothing: the
#   executor reports the end. What is sent after it waits until it is done.
# klong_lost: whoever sent the command is gone. It goes on to its end, or to its timeout. Another executor's command may
#   be running by now: that is its owner's.
# klong_halt: end all that runs and forget the shell's state: no agent's code runs from here on, but by a command. The
#   executor is spared: the supervisor's parent, or in a shell that knows no lastpipe its sibling.
# klong_take: from here on this is the sandbox's only supervisor. Ends the others with their executors, then the command
#   that one of them left running: in this order, since a command that starts meanwhile first writes its group to
#   klong_running and then looks whether its executor lives (executor.CHILD). Whichever way round, it is killed or never
#   begins. Answers WAS_KILLED if that command's executor is gone: one whose connection is lost lives on to the end of
#   its command, and then notes that, so only a signal from inside the sandbox leaves it like this.
SUPERVISOR = r"""
exec 3>&2 4>&1 1>/dev/null 2>/dev/null
klong_end() { printf '\036%s %s\036' "$1" "$2" >&3; }
klong_open() {
  command -v timeout && command -v base64 && command -v tar && cd "$klong_work"
  klong_status=$?
  printf %s "$klong_kind" >&3
  klong_end "$1" $klong_status
}
klong_alive() { klong_line=; read -r klong_line < "/proc/$1/cmdline"; [ "$klong_line" = "$klong_name" ]; }
klong_wait() {  # klong_wait TEST ARG: until it fails, 0.5 s at most
  klong_tries=0
  while [ $klong_tries -lt 50 ] && "$@"; do
    sleep 0.01
    klong_tries=$((klong_tries + 1))
  done
}
klong_stat() {  # klong_state, klong_parent and klong_began of the process in the directory $1
  klong_last=
  while read -r klong_line; do klong_last=$klong_line; done < "$1/stat"  # a name may take several lines
  set -- ${klong_last##*) }
  klong_state_of=$1 klong_parent=$2 klong_group=$3 klong_began=${20}
}
# A command may begin in the very tick in which the one before left a job: then the numbers tell them apart.
klong_is_later() {  # is process $1 younger than what began at $2 with the number $3?
  [ "$klong_began" -gt "$2" ] || { [ "$klong_began" = "$2" ] && [ "$1" -gt "$3" ]; }
}
klong_kill_orphans() {  # those that are later than $1 $2; false if there were none
  klong_found=1
  for klong_proc in /proc/[0-9]*; do
    klong_stat "$klong_proc"
    klong_pid=${klong_proc#/proc/}
    if [ "$klong_parent" = 1 ] && [ "$klong_state_of" != Z ] && klong_is_later "$klong_pid" "$@"; then
      kill -s KILL "$klong_pid"
      klong_found=0
    fi
  done
  return $klong_found
}
klong_end_strays() {
  klong_tries=0
  while [ "$klong_alone" ] && klong_kill_orphans "$@"; do
    if [ $klong_tries -ge 50 ]; then  # they fork faster than they are found: so all at once, wanted jobs too
      kill -s KILL -- -1
      return
    fi
    sleep 0.01
    klong_tries=$((klong_tries + 1))
  done
}
klong_kill_all() {  # but this shell, its executor and other users' processes; false if there were none
  klong_found=1
  for klong_proc in /proc/[0-9]*; do
    klong_stat "$klong_proc"
    klong_pid=${klong_proc#/proc/}
    if [ "$klong_pid" != $$ ] && [ "$klong_pid" != $PPID ] && [ -O "$klong_proc" ] && [ "$klong_state_of" != Z ] &&
      { [ "$klong_kind" = bash ] || [ "$klong_parent" != $PPID ]; }; then
      kill -s KILL "$klong_pid"
      klong_found=0
    fi
  done
  return $klong_found
}
klong_halt() {
  klong_tries=0
  while [ "$klong_alone" ] && klong_kill_all; do
    if [ $klong_tries -ge 50 ]; then kill -s KILL -- -1; fi  # they fork faster: all at once, the executor too
    klong_tries=$((klong_tries + 1))
    sleep 0.01
  done
  rm -rf "$klong_state" "$klong_state".* "$klong_running" "$klong_running".*
  klong_end "$1" $?
}
klong_forget() {  # and end the shell that stands by in it (executor.BASH); the executor forks the next
  rm -rf "$klong_state" "$klong_state".*
  klong_status=$?
  for klong_proc in /proc/[0-9]*; do
    klong_stat "$klong_proc"
    klong_pid=${klong_proc#/proc/}
    if [ "$klong_kind" = bash ] && [ "$klong_parent" = $PPID ] && [ "$klong_pid" != $$ ]; then
      kill -s KILL "$klong_pid"
    fi
  done
  klong_end "$1" $klong_status
}
klong_note() {  # of the command that runs: klong_job, its group; klong_up, when it began; its executor; its timeout
  klong_job= klong_up= klong_executor= klong_timeout=0
  if [ -f "$klong_running" ]; then read -r klong_job klong_up klong_executor klong_timeout < "$klong_running"; fi
  [ "$klong_job" ]
}
klong_kill() {
  if klong_note; then
    kill -s KILL -- "-$klong_job"
    klong_wait kill -0 "-$klong_job"
    # In hundredths of a second, as /proc/PID/stat has it.
    klong_end_strays $((${klong_up%.*} * 100 + 1${klong_up#*.} - 100)) "$klong_job"
  fi
  klong_wake
}
klong_wake() { kill -s CONT $PPID; }  # the agent may have stopped it
klong_lost() {
  klong_tries=0
  while klong_note && [ "$klong_executor" = $PPID ]; do
    if [ $klong_tries -ge ${klong_timeout%.*} ]; then
      klong_kill
      return
    fi
    sleep 1
    klong_tries=$((klong_tries + 1))
  done
}
klong_take() {
  klong_status=0 klong_line=
  if klong_note; then
    read -r klong_line < "/proc/$klong_executor/cmdline"  # empty for a zombie
    if ! [ "$klong_line" ]; then klong_status=1; fi
  fi
  for klong_proc in /proc/[0-9]*; do
    klong_proc=${klong_proc#/proc/}
    if [ "$klong_proc" != $$ ] && klong_alive "$klong_proc"; then
      klong_stat "/proc/$klong_proc"
      kill -s KILL -- "-$klong_group"
      kill -s KILL "$klong_proc"
      klong_wait klong_alive "$klong_proc"
    fi
  done
  klong_kill
  rm -rf "$klong_running"
  klong_end "$1" $klong_status
}
klong_exec() { printf %s "$2" >&4; }
klong_read() {
  klong_status=66
  if [ -f "$3" ]; then timeout -s KILL 60 head -c "$2" -- "$3" </dev/null >&3; klong_status=$?; fi
  klong_end "$1" $klong_status
}
klong_upload() { klong_upload=$1; rm -rf "$1"; true > "$1"; }
klong_part() { printf %s "$1" | base64 -d >> "$klong_upload"; }
klong_unpack() {
  tar -xof "$klong_upload" -C "$klong_work" </dev/null >&3 2>&3
  klong_status=$?
  rm -f "$klong_upload"
  klong_end "$1" $klong_status
}
klong_name=sh-s$1
trap klong_lost EXIT
"""


class Paths(NamedTuple):
    """Where things are in a sandbox.

    `state` must survive a restart of the sandbox and `running`, the process group of the current command, must not:
    its number means another process then. Raises ValueError for a path that a shell would read as more than a word.
    """

    work: str
    state: str
    running: str

    def check(self) -> None:
        for path in self:
            if not re.fullmatch(r"[A-Za-z0-9_./%-]+", path):
                raise ValueError(f"path {path!r} of a sandbox: use letters, digits and _ . / % - alone")


def supervisor_script(paths: Paths, *, alone: bool) -> str:
    """The text to send to the supervisor. `alone`: no process that it may see or signal is anyone else's."""
    paths.check()
    settings = {"klong_" + name: value for name, value in paths._asdict().items()}
    settings["klong_alone"] = "yes" if alone else ""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()) + SUPERVISOR
