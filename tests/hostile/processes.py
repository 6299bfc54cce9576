"""Signals, and processes that are to go and don't, or are to stay and might go."""

import select

from tests.hostile.behaviour import WELL, Behaviour, Ends

TIMEOUT, SHELL_LOST = (Ends.TIMEOUT,), (Ends.SHELL_LOST,)
SUPERVISOR = "$(pgrep -f klong-supervis[o]r)"
COUNT = "ps -eo args= | grep -cx '{}'; true"


def _left_over(name: str, command: str, marker: str, timeout_s: float = 0.7) -> Behaviour:
    """A command that is killed at its timeout, and with it the processes whose whole command line is `marker`."""
    return Behaviour(name, command, TIMEOUT, timeout_s=timeout_s, then=COUNT.format(marker), then_shows=r"\A0\n\Z")


# A command too long to be put past the supervisor.
BY_SUPERVISOR = f" # {'x' * select.PIPE_BUF}"
WAITING = "$(pgrep -P $$ bash)"  # of a command's own shell and, after it, of the next one's


def _thief(words: str, mark: str) -> str:
    """Stops $1, reads the command that comes by the stdin of $2 in its stead, and answers it on the stdout of $3.

    First with what no honest reply looks like, then with a `mark`. The nonce is in the command after these `words`.
    """
    return rf"""
setsid perl -e '
  select undef, undef, undef, 0.5; kill STOP => $ARGV[0];
  open my $in, q(<), qq(/proc/$ARGV[1]/fd/0) or die; open my $out, q(>), qq(/proc/$ARGV[2]/fd/1) or die;
  sysread $in, my $call, 1 << 20; my ($nonce) = $call =~ /{words}(\w+)/;
  syswrite $out, qq(\x1e$nonce abc\x1e\x1e$nonce \x1e\x1e$nonce ) . q(9) x 9999 . qq(\x1e);
  syswrite $out, qq(\x1e$nonce ) . q(x) x 99999;
  open my $note, q(>), q(/tmp/stolen); print $note qq(forged $nonce); close $note;
  syswrite $out, qq(\x1e$nonce {mark}\x1e); kill CONT => $ARGV[0];
' """


PROCESSES = (
    Behaviour("kill -9 -1", "kill -9 -1", SHELL_LOST),
    Behaviour("kill -1", "kill -1 -1; sleep 5", SHELL_LOST),
    Behaviour("every signal there is", "for s in $(seq 1 64); do kill -$s -1; done; sleep 5", SHELL_LOST),
    Behaviour("the supervisor killed", f"kill -9 {SUPERVISOR}; sleep 1; echo on", exit_code=0, shows="on", patience=2),
    Behaviour("the supervisor killed while time runs out", f"kill -9 {SUPERVISOR}; sleep 60", TIMEOUT, timeout_s=1),
    Behaviour("the executor killed", "kill -9 $$; sleep 60", SHELL_LOST),
    Behaviour("both killed", f"kill -9 $$ {SUPERVISOR}; sleep 60", SHELL_LOST),
    Behaviour("the next command's shell killed", "(sleep 0.3; kill -9 $(pgrep -P $$ bash)) & echo begun", exit_code=0,
              idle_s=1),
    Behaviour("the supervisor stopped", f"kill -STOP {SUPERVISOR}", exit_code=0, then_timeout_s=1, patience=2),
    Behaviour("the executor stopped", "kill -STOP $$; sleep 60", TIMEOUT, timeout_s=1),
    Behaviour("the executor stopped at the end", "kill -STOP $$", exit_code=0, timeout_s=1),
    Behaviour("its own group stopped", "kill -STOP 0; sleep 60", TIMEOUT, timeout_s=1),
    Behaviour("all stopped", "kill -STOP -1; sleep 60", TIMEOUT, timeout_s=1),
    Behaviour("itself stopped", "kill -STOP $BASHPID", TIMEOUT, timeout_s=1),
    Behaviour("the supervisor traced", "perl -e 'syscall 101, 16, $ARGV[0] + 0, 0, 0; sleep 60' " + SUPERVISOR,
              TIMEOUT, timeout_s=1),
    Behaviour("the supervisor's input stolen",
              f"s={SUPERVISOR}; (sleep 0.2; kill -STOP $s; cat /proc/$s/fd/0 > /tmp/stolen) & echo begun",
              shows="begun", idle_s=1, then=f"{WELL}; grep -o klong_exec /tmp/stolen{BY_SUPERVISOR}",
              then_timeout_s=1, patience=2, then_shows="text\nklong_exec"),
    Behaviour("the executor's input stolen",
              f"(sleep 0.2; kill -STOP {WAITING}; cat /proc/$$/fd/0 > /tmp/stolen) & echo begun",
              shows="begun", idle_s=1, then=f"{WELL}; grep -o klong_more /tmp/stolen", then_timeout_s=1, patience=2,
              then_shows="text\nklong_more"),
    Behaviour("replies forged by a spy", f"{_thief('klong_exec ', '3')} {SUPERVISOR} {SUPERVISOR} $$ & sleep 0.2",
              exit_code=0, idle_s=1, then=f"{WELL}; cat /tmp/stolen{BY_SUPERVISOR}", then_shows="text\nforged",
              patience=2),
    Behaviour("early replies forged by a spy",
              f"(sleep 0.2; {_thief('klong_nonce=', '3r')} {WAITING} $$ $$) & echo begun", exit_code=0, idle_s=1.5,
              then=f"{WELL}; cat /tmp/stolen", then_shows="text\nforged", patience=2),
    Behaviour("every supervisor killed as it comes", "setsid sh -c 'while :; do pkill -9 -f klong-supervis[o]r; done' "
              "< /dev/null > /dev/null 2>&1 &", (Ends.EXIT, Ends.SHELL_LOST), patience=3),
    Behaviour("the main process killed", "kill -9 1 $(pgrep -x sleep)", exit_code=1, shows="not permitted"),
    Behaviour("never ending", "while :; do :; done", TIMEOUT, timeout_s=1),
    Behaviour("deaf to signals", "trap '' TERM INT HUP QUIT; while :; do sleep 1; done", TIMEOUT, timeout_s=1),
    _left_over("nohup", "nohup sleep 4501 > /dev/null & sleep 60", "sleep 4501"),
    _left_over("a session of its own", "setsid sleep 4502 & sleep 60", "sleep 4502"),
    _left_over("a daemon", "(setsid sh -c 'sleep 4503 & sleep 4503 &' &); sleep 60", "sleep 4503"),
    _left_over("a daemon with no environment", "setsid env -i sh -c 'setsid sleep 4504 &' & sleep 60", "sleep 4504"),
    _left_over("daemons that make daemons", "setsid sh -c 'while :; do setsid sh -c \"sleep 4505 & sleep 0.05\" & "
               "sleep 0.02; done' & sleep 60", "sleep 4505"),
    _left_over("a daemon whose name is made up",
               "setsid perl -e '$0 = q(made up); open my $f, q(>), q(/proc/self/comm); print $f qq{a\\n1 (b) S 7}; "
               "close $f; sleep 60' & sleep 60", "made up"),
    Behaviour("a group that forks as it is killed", "f() { f & f & wait; }; sleep 4506 & f", (*TIMEOUT, *SHELL_LOST),
              timeout_s=0.3, then=COUNT.format("sleep 4506"), then_shows=r"\A0\n\Z", patience=4),
    Behaviour("a background job that is wanted", "sleep 4507 & echo begun", shows=r"\Abegun\n\Z",
              then=COUNT.format("sleep 4507"), then_shows=r"\A1\n\Z"),
    Behaviour("wanted jobs beside a command that is killed", "setsid sleep 4510 & sleep 60", TIMEOUT, timeout_s=0.7,
              before="sleep 4508 & setsid sleep 4509 & (sleep 4508 &); sleep 0.1",
              then=";".join(COUNT.format(f"sleep {n}") for n in (4508, 4509, 4510)), then_shows=r"\A2\n1\n0\n\Z"),
    Behaviour("a wanted job beside a command that fails", "sleep 4511 & kill -9 $BASHPID", exit_code=137,
              then=COUNT.format("sleep 4511"), then_shows=r"\A1\n\Z"),
)  # fmt: skip
