"""The shell text of an executor, which forks itself for each command: see sandboxes.shell for a picture.

Bash where there is one, each command in a fork of it that has a process group of its own (`set -m`); in an image
without bash, each in a new `sh`, by `setsid`. It starts the supervisor, whose end of their pipe gives it commands, as
sandboxes.command.message makes them.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from sandboxes.command import BLOCK
from sandboxes.supervisor import Paths

# What the executor does. It keeps one child ready, which takes a command from the pipe; the executor waits for its end,
# takes the nonce that follows, and reports. A child that was killed before it got a command has left it in the pipe:
# the next is given it.
# All texts are one line, so that the line numbers in a shell's messages are the command's own. And they come through
# the environment, so that `ps` shows none, and `pkill -f server.py` doesn't find, and kill, the shell that runs it.
# No command gets a descriptor of the channel; 255 is where bash keeps its own stdin meanwhile, for lastpipe.
# A job that was stopped hasn't ended: `wait` knows that without job control alone. A killed process may be in the
# middle of printing, so its group is waited for.
EXECUTOR = (
    "unset klong_bash klong_sh klong_shell klong_token; exec 3>&2 2>/dev/null 5<&0 </dev/null; "
    "cd {work}; klong_executor=$$; klong_child={child}; "
    "klong_nl=$(printf '\\nx'); klong_nl=${{klong_nl%x}}; klong_line= klong_ran=; "
    "klong_kind={kind} sh -s {mark} <&5 2>&3 3>&- 5<&- | {{ exec 3>&- 5<&-; while true; do "
    "[ -f {running} ] || rm -rf {running}; {start}; klong_status=$?; {next}; klong_line=; klong_tries=0; "
    'while [ $klong_status = 137 ] && [ "$klong_job" ] && [ $klong_tries -lt 50 ] && kill -0 "-$klong_job"; do '
    "sleep 0.01; klong_tries=$((klong_tries + 1)); done; "
    "[ -p {running} ] || true > {running}; "
    "printf '\\036%s %s\\036' \"$klong_nonce\" $klong_status; klong_ran=yes; done; }}"
)


class Flavour(NamedTuple):
    """What differs between bash and another shell. `next` takes a nonce, or goes on where a command was left."""

    kind: str  # as sandboxes.command.message takes it
    options: str
    start: str
    next: str
    child: str
    save: str  # the child's trap at its exit


# What a child runs. It notes what a supervisor has to know, and then looks whether its executor lives (see klong_take).
# The state is replaced by a rename: a full disk or a kill while saving keeps the old. umask and noclobber may be the
# command's.
_NAMES = (  # that a command is not to see, nor the state to hold
    "klong_child klong_command klong_executor klong_line klong_load klong_more klong_nonce klong_ran "
    "klong_rest klong_save klong_timeout klong_up"
)
_NOTE = "echo {job} $klong_up $klong_executor $klong_timeout > {running}; [ -e /proc/$klong_executor/cwd ] || exit; "
_GO = 'cd "$PWD" || cd {work}; '
_SAVE = "[ ! -p {state}.new ] && export -p >| {state}.new && mv -f {state}.new {state}; "

SH = Flavour(
    kind="sh",
    options="",
    start=(
        "( export klong_child klong_line klong_nl klong_executor; exec setsid sh -c 'eval \"$klong_child\"' sh 2>&1 )"
    ),
    next='IFS= read -r klong_line || exit; case $klong_line in klong_command=*) continue; esac; eval "$klong_line"',
    child=(
        '[ "$klong_line" ] || IFS= read -r klong_line || exit; exec </dev/null; eval "$klong_line"; '
        "{{ read -r klong_up klong_rest < /proc/uptime; " + _NOTE + "[ -r {state} ] && . {state}; " + _GO + "}} "
        "2>/dev/null; trap {save} EXIT; unset klong_executor klong_line klong_nl klong_rest klong_timeout klong_up; "
        "eval 'unset klong_child klong_command;' \"$klong_command\""
    ),
    save="{{ unset klong_child klong_command; export PWD; umask 077; " + _SAVE + "}} 2>/dev/null",
)

# Bash reads from a pipe byte by byte, unless it is told how many there are.
# Its child does what it can before there is a command. It goes once through the like of what it does then (_REHEARSAL),
# since the first touch of a page after a fork costs more than what it is touched for. And it runs the state, where that
# can do nothing but set variables, and none that changes what follows (_AHEAD): an agent may have written to it what
# never ends, which must run in a command's time. Not before an executor's first command: another's may still be
# running, whose state it will be.
# Where a command returns, to a trap that is ours, with its stdout the executor's and that one asleep, waiting for it,
# the child itself reports the end (_REPORT). An executor that is about to die of a signal is awake. Only when the child
# has exited the executor reports too: the channel waits for this before it asks for anything else. The state is saved
# before either. To save takes a process and the disk, so the child first looks, in memory, whether it must (_SAME).
_REHEARSAL = (
    "read -r klong_up klong_rest < /proc/uptime; echo $BASHPID $klong_up x > /dev/null; "
    "[ ! -f /dev/null ] || true >| /dev/null; [ -e /proc/$klong_executor/cwd ]; "
    "read -r klong_rest < /proc/$klong_executor/stat; [[ $klong_rest = *') S '* ]]; "
    "eval 'klong_more=0 klong_timeout=1 klong_nonce=00 klong_command=\"cd .\"'; eval 'declare -x klong_rest=\"x\"'; "
    'trap "$klong_save" EXIT; trap - EXIT; eval "eval \'unset klong_rest;\' \\"\\$klong_command\\"; '
    '{{ set -- klong_returned \\"\\$?\\" $klong_nonce; }} 2>/dev/null"; export -p > /dev/null; '
    "mapfile klong_new < /proc/uptime; mapfile klong_old < /proc/uptime; unset klong_new klong_old; "
    "[ /dev/fd/1 -ef /proc/$klong_executor/fd/1 ]; "
    'builtin printf "\\036%s %sr\\036" "$3" "$2" > /dev/null; set --; '
)
_AHEAD = (
    "[ ! \"$klong_ran\" ] || [ ! -f {state} ] || IFS= read -r -d '' klong_rest < {state}; "
    "klong_plain='^(declare -x [A-Za-z_][A-Za-z0-9_]*=\"[^\"$`\\]*\"'$klong_nl')*$' "
    "klong_odd=' (klong_.*|IFS|TMOUT|POSIXLY_CORRECT|SHELLOPTS|BASH.*|LC_.*|LANGUAGE)='; "
    '[ ! "$klong_rest" ] || [ ${{#klong_rest}} -gt 4096 ] || [[ ! $klong_rest =~ $klong_plain ]] || '
    '[[ $klong_rest =~ $klong_odd ]] || {{ eval "$klong_rest"; klong_load=; }}; unset klong_plain klong_odd; '
)
_REPORT = (
    "[ /dev/fd/1 -ef /proc/@/fd/1 ] && read -r klong_rest < /proc/@/stat && [[ $klong_rest = *') S '* ]] && "
    '{{ [ ! -f {running} ] || true >| {running}; builtin printf "\\036%s %sr\\036" "$3" "$2"; }}; '
)
_SAME = (
    "[ ! -p {running}.state ] && [ ! -p {state} ] && export -p >| {running}.state && "
    "mapfile klong_new < {running}.state && mapfile klong_old < {state} && "
    '[ "${{klong_new[*]}}" = "${{klong_old[*]}}" ]; '
)
BASH = Flavour(
    kind="bash",
    options="shopt -s lastpipe; ",
    start=(
        'set -m; ( set +m; shopt -u lastpipe; exec 255<&-; eval "$klong_child" ) & '
        "set +m; klong_job=$!; wait $klong_job"
    ),
    next=(
        "IFS= read -r -N {block} klong_line || exit; "
        'case $klong_line in klong_more=*) continue;; klong_nonce=*) eval "$klong_line";; *) exit; esac'
    ),
    child=(
        "exec 4<&0 5< /proc/uptime </dev/null; klong_save={save} klong_load='. {state}'; "
        + _REHEARSAL + _AHEAD + "unset klong_job klong_nl klong_status klong_tries; "
        '[ "$klong_line" ] || IFS= read -r -u 4 -N {block} klong_line || exit; eval "$klong_line"; '
        '[ $klong_more = 0 ] || {{ IFS= read -r -u 4 -N $klong_more klong_line && eval "$klong_line"; }} || exit; '
        "read -r -u 5 klong_up klong_rest; " + _NOTE
        + '[ ! "$klong_load" ] || [ ! -f {state} ] || {{ exec 4<&- 5<&-; eval "$klong_load"; }}; ' + _GO
        + 'exec 4<&- 5<&- 2>&1; trap "$klong_save" EXIT; '
        "eval \"eval 'unset " + _NAMES + ";' \\\"\\$klong_command\\\"; "
        '{{ set -- klong_returned \\"\\$?\\" $klong_nonce; }} 2>/dev/null"'
    ),
    save=(
        "{{ unset " + _NAMES + "; export PWD; umask 077; {{ " + _SAME + "}} || {{ " + _SAVE + "}}; "
        '[ "${{1-}}" = klong_returned ] && {{ ' + _REPORT + 'builtin exit "$2"; }}; }} 2>/dev/null'
    ),
)  # fmt: skip

COMMAND = [
    "sh",
    "-c",
    'klong_shell=$(command -v bash) && exec "$klong_shell" -c \'eval "$klong_bash"\' bash; '
    "exec sh -c 'eval \"$klong_sh\"' sh",
]


def executor_environment(paths: Paths, mark: str) -> dict[str, str]:
    """What COMMAND needs in its environment; `mark` shows in the command line of the supervisor."""
    paths.check()
    return {f"klong_{flavour.kind}": flavour.options + _executor(flavour, paths, mark) for flavour in (BASH, SH)}


def _executor(flavour: Flavour, paths: Paths, mark: str) -> str:
    where = {**paths._asdict(), "block": BLOCK, "job": "$BASHPID" if flavour is BASH else "$$"}
    save = '"$klong_executor"'.join(map(shlex.quote, flavour.save.format(**where).split("@")))
    child = shlex.quote(flavour.child.format(**where, save=save))
    start, follow = flavour.start.format(**where), flavour.next.format(**where)
    return EXECUTOR.format(**where, kind=flavour.kind, mark=shlex.quote(mark), start=start, next=follow, child=child)
