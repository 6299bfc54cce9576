"""The shell text that makes a plain `sh` the supervisor of a sandbox: see sandboxes.shell for what calls it.

A supervising shell is started as `sh -s SUPERVISOR_MARK`, which shows in its command line: so the next one finds it,
whoever opened it, and ends it. POSIX's corners: dash takes `kill -s KILL -- -N` and `kill -0 -N` but not
`kill -KILL -- -N`; and `true > file` is not `: > file`, since a POSIX shell exits where the redirection of a special
built-in fails.
"""

from __future__ import annotations

import re
import shlex

NOT_A_FILE = 66  # EX_NOINPUT, what klong_read answers
WAS_KILLED = 1  # what klong_take answers: see there

# klong_open: is all there that a supervisor needs?
# klong_exec: a command whose time is up goes with all that it began: `timeout` kills its group, klong_end_strays what
#   left the group. Those are the orphans that are no older than the command, then the orphans that these leave, and
#   so on. What an older background job starts meanwhile has that job as its parent. Only where all processes are the
#   sandbox's own (klong_alone): on a bare host the orphans are anyone's.
# klong_halt: end all that runs and forget the shell's state: no agent's code runs from here on, but by a command.
# klong_take: from here on this is the sandbox's only supervisor. Ends the others, then the command that one of them
#   left running: in this order, since a command that starts meanwhile first writes its group to klong_running and then
#   looks whether its supervisor lives (see PROLOG). Whichever way round, it is killed or never begins. Answers
#   WAS_KILLED if the earlier supervisor is gone in the middle of a command. One whose connection is lost lives on to
#   the end of its command, and then notes that, so only a signal from inside the sandbox leaves it like this.
SUPERVISOR = r"""
exec 3>&2 2>/dev/null
klong_end() { printf '\036%s %s\036' "$1" "$2"; }
klong_open() {
  command -v timeout && command -v base64 && command -v tar && cd "$klong_work"
  klong_end "$1" $? >&3
} >/dev/null
klong_alive() { klong_line=; read -r klong_line < "/proc/$1/cmdline"; [ "$klong_line" = "$klong_name" ]; }
klong_wait() {  # klong_wait TEST ARG: until it fails, 0.5 s at most
  klong_tries=0
  while [ $klong_tries -lt 50 ] && "$@"; do
    sleep 0.01
    klong_tries=$((klong_tries + 1))
  done
}
klong_ticks() {  # klong_now: hundredths of a second since the host started, as /proc/PID/stat has them
  read -r klong_up klong_rest < /proc/uptime
  klong_now=$((${klong_up%.*} * 100 + 1${klong_up#*.} - 100))
}
klong_kill_orphans() {  # those that began at $1 or later; false if there were none
  klong_found=1
  for klong_proc in /proc/[0-9]*; do
    klong_last=
    while read -r klong_line; do klong_last=$klong_line; done < "$klong_proc/stat"  # a name may take several lines
    set -- "$1" ${klong_last##*) }  # then $2 is its state, $3 its parent, ${21} when it began
    if [ "$3" = 1 ] && [ "$2" != Z ] && [ "${21}" -ge "$1" ]; then
      kill -s KILL "${klong_proc#/proc/}"
      klong_found=0
    fi
  done
  return $klong_found
}
klong_end_strays() {
  klong_tries=0
  while [ "$klong_alone" ] && klong_kill_orphans "$1"; do
    if [ $klong_tries -ge 50 ]; then  # they fork faster than they are found: so all at once, wanted jobs too
      kill -s KILL -- -1
      return
    fi
    sleep 0.01
    klong_tries=$((klong_tries + 1))
  done
}
klong_others_run() {
  for klong_proc in /proc/[0-9]*; do
    if [ "$klong_proc" != /proc/$$ ] && [ -O "$klong_proc" ]; then return 0; fi
  done
  return 1
}
klong_halt() {
  if [ "$klong_alone" ]; then
    kill -s KILL -- -1  # all at once but this shell and other users' processes
    klong_wait klong_others_run
  fi
  rm -rf "$klong_state" "$klong_state.new" "$klong_upload" "$klong_running"
  klong_end "$1" $? >&3
}
klong_take() {
  klong_others= klong_group= klong_status=0
  for klong_proc in /proc/[0-9]*; do
    klong_proc=${klong_proc#/proc/}
    if [ "$klong_proc" != $$ ] && klong_alive "$klong_proc"; then
      klong_others=yes
      kill -s KILL -- "-$klong_proc"
      kill -s KILL "$klong_proc"
      klong_wait klong_alive "$klong_proc"
    fi
  done
  read -r klong_group klong_began < "$klong_running"
  if [ -n "$klong_group" ]; then
    if [ -z "$klong_others" ]; then klong_status=1; fi
    kill -s KILL -- "-$klong_group"
    klong_wait kill -0 "-$klong_group"
    klong_end_strays "$klong_began"
  fi
  true > "$klong_running"
  klong_end "$1" $klong_status >&3
}
klong_exec() {
  klong_ticks
  klong_began=$klong_now
  klong_child=$klong_prolog klong_command=$3 klong_parent=$$ klong_began=$klong_began \
    timeout -s KILL "$2" "$klong_shell" -c 'eval "$klong_child"' "${klong_shell##*/}" </dev/null 2>&1 3>&-
  klong_status=$?
  if [ $klong_status = 137 ]; then  # a killed process may be in the middle of printing: wait for its group
    read -r klong_group klong_rest < "$klong_running"
    klong_wait kill -0 "-$klong_group"
    klong_ticks
    if [ $((klong_now - klong_began)) -ge $((${2%.*} * 100 + 1${2#*.} / 10 - 100)) ]; then
      klong_end_strays "$klong_began"
    fi
  fi
  true > "$klong_running"
  klong_end "$1" $klong_status
}
klong_read() {
  klong_status=66
  if [ -f "$3" ]; then timeout -s KILL 60 head -c "$2" -- "$3" </dev/null >&3; klong_status=$?; fi
  klong_end "$1" $klong_status >&3
}
klong_part() { printf %s "$1" | base64 -d >> "$klong_upload"; }
klong_unpack() {
  tar -xof "$klong_upload" -C "$klong_work" </dev/null >&3 2>&3
  klong_status=$?
  rm -f "$klong_upload"
  klong_end "$1" $klong_status >&3
}
klong_shell=$(command -v bash || command -v sh)
klong_name=sh-s$1
"""

# What a command's shell runs first. It and the command come through the environment, so that `ps` shows neither and
# `pkill -f server.py` doesn't find, and kill, the shell that runs it. It is one line: the line numbers in a shell's
# messages are the command's own. The state is replaced by a rename: a full disk or a kill while saving keeps the old;
# umask and noclobber may be the command's.
PROLOG = (
    "{{ echo $PPID $klong_began > {running}; }} 2>/dev/null; "
    "read -r klong_command_line 2>/dev/null < /proc/$klong_parent/cmdline; "
    '[ "$klong_command_line" ] || exit; unset klong_command_line klong_parent klong_began; '
    '[ -r {state} ] && . {state} 2>/dev/null; cd "$PWD" 2>/dev/null || cd {work}; '
    "trap '{{ unset klong_child klong_command; export PWD; "
    "umask 077; export -p >| {state}.new && mv -f {state}.new {state}; }} 2>/dev/null' EXIT; "
    "eval 'unset klong_child klong_command;' \"$klong_command\""
)


def supervisor_script(*, work: str, state: str, running: str, alone: bool) -> str:
    """The text to send to `sh -s MARK`. `alone`: no process that it may see or signal is anyone else's.

    `state` must survive a restart of the sandbox and `running`, the process group of the current command, must not:
    its number means another process then. Raises ValueError for a path that a shell would read as more than a word.
    """
    for path in (work, state, running):
        if not re.fullmatch(r"[A-Za-z0-9_./%-]+", path):
            raise ValueError(f"path {path!r} of a sandbox: use letters, digits and _ . / % - alone")
    settings = {
        "klong_work": work,
        "klong_running": running,
        "klong_alone": "yes" if alone else "",
        "klong_state": state,
        "klong_upload": f"{state}.upload",
        "klong_prolog": PROLOG.format(work=work, state=state, running=running),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()) + SUPERVISOR
